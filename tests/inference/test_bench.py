"""The bench command, on a block-pruned model of 32 positions."""

import json
from itertools import product
from pathlib import Path

import pytest

from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.errors import ConfigError
from mlprune_jax.inference import bench
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.pretrained import save_pretrained
from pallas_kernels.block_sparse_matmul import calibrate as calibration
from pallas_kernels.block_sparse_matmul.calibrate import calibrate
from tests.inference.conftest import CONFIG, masked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = masked(num_labels=2, config=CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)}))
    path = write_demo(tmp_path_factory.mktemp("model"), train_size=1, dev_size=1)
    save_pretrained(path, model.config, model.params, kind="classification")
    save_masks(path, model.masks)
    return path


def test_bench_compares_and_stores(command, folder, tmp_path):
    stored = tmp_path / "bench.json"
    done = command("bench", folder, "--batch", "1,2", "--seq", "8", "--rounds", "2", "-o", stored, "--json", "-q")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert json.loads(stored.read_text()) == result
    decisions = result["decisions"]
    assert len(decisions) == 2 * 2 * 4
    assert all(d["reason"] and d["implementation"] and "x" in d["matrix"] for d in decisions)
    rows = result["rows"]
    assert [(r["batch"], r["variant"]) for r in rows[:3]] == [(1, "dense"), (1, "shrunk"), (1, "block-sparse")]
    assert len(rows) == 6
    assert all(r["speedup"] == 1 for r in rows if r["variant"] == "dense")
    assert all(r["p90_ms"] >= r["p50_ms"] > 0 and sum(r["products"].values()) == 8 for r in rows)
    assert rows[0]["parameter_mb"] >= rows[1]["parameter_mb"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "nothing to time"),
        (("--batch", "1,x"), "--batch takes numbers"),
        (("--seq", "0"), "--seq"),
        (("-o", "."), "it is a folder"),
    ],
)
def test_bench_refuses(command, folder, args, told):
    done = command("bench", *([folder] if args else []), *args)
    assert done.exit_code == 2
    assert told in done.stderr


def test_bench_takes_lengths_that_the_model_has(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(folder)
    told = bench.bench_to_file("~/model", "~/bench.json", batches=[1], rounds=1)
    assert {row["length"] for row in told["rows"]} == {32}
    assert json.loads((tmp_path / "bench.json").read_text()) == told


@pytest.mark.parametrize("name", ["nowhere/bench.json", "file/bench.json"])
def test_bench_sees_that_it_can_write_before_it_compiles(folder, tmp_path, monkeypatch, name):
    """Found by review: minutes of timing ended in a file that could not be."""
    (tmp_path / "file").touch()  # where nobody can write a file below
    monkeypatch.setattr(bench, "load", None)
    with pytest.raises(ConfigError, match=r"bench.json cannot be written: .*\n.*-o"):
        bench.bench_to_file(folder, tmp_path / name, batches=[1], lengths=[8])


def test_a_calibration_needs_a_place_for_its_table(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is where there is no home
    with pytest.raises(ConfigError, match=r"no place.*\n.*XDG_CACHE_HOME"):
        bench.calibrate_device(1.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"no place.*file.*\n.*XDG_CACHE_HOME"):
        bench.calibrate_device(1.0)


def test_a_calibration_says_what_its_table_has(command, tmp_path, monkeypatch, caplog):
    """Found by a newcomer: the end showed a path, and the table lacked most of what the document names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "_measure", lambda *_: ({"dense": 2.0, "xla": 1.0}, 2.0))
    monkeypatch.setattr(bench, "usual_dtypes", lambda: ("float32", "bfloat16"))
    asked = {}
    monkeypatch.setattr(
        bench, "calibrate", lambda *a, **k: asked.update(k) or calibrate(*a, **k | {"seconds_limit": 0.0})
    )
    done = command("bench", "--calibrate", "--seconds", "7", "--json", "-q")
    assert done.exit_code == 0, done.output
    assert asked["seconds_limit"] == 7
    told = json.loads(done.stdout)
    assert list(tmp_path.glob("mlprune/costs/*.json")) == [Path(told["table"])]
    kinds = [(row["dtype"], row["block"]) for row in told["measured"]]
    assert kinds == list(product(("float32", "bfloat16"), ("32x32", "64x64", "16x16")))
    counts = [[row[shape] for shape in ("768x768", "3072x768", "768x3072", "768x2304")] for row in told["measured"]]
    assert counts == [[1, 0, 0, 0]] + [[0, 0, 0, 0]] * 5
    assert command("bench", "--calibrate").exit_code == 0
    assert "time is over" in caplog.text
