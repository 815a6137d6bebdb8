"""The bench command, on a block-pruned model of 32 positions."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest

from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.errors import ConfigError
from mlprune_jax.inference import bench
from mlprune_jax.inference.plan import Decision
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.model_folder import MASKS
from mlprune_jax.models.pretrained import save_pretrained
from pallas_kernels.block_sparse_matmul import calibrate as calibration
from pallas_kernels.block_sparse_matmul.calibrate import calibrate
from pallas_kernels.block_sparse_matmul.choose import Choice
from pallas_kernels.timing import summarize
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
    assert all(r["speedup_within_rounds"] == 1 for r in rows if r["variant"] == "dense")
    notes = [r.get("note") for r in rows]  # a reader takes the third for a measurement of sparse products else
    assert notes == [None, None, "all products dense: no measurement near (8)"] * 2
    assert all(r["p90_ms"] >= r["p50_ms"] > 0 and sum(r["products"].values()) == 8 for r in rows)
    assert rows[0]["parameter_mb"] >= rows[1]["parameter_mb"]


def test_a_speedup_is_that_within_a_round(folder, monkeypatch):
    """Found by a newcomer: with a p50 above dense's, "speedup 1.291" looked like a mistake."""
    seconds = {"dense": (1.0, 2.0, 6.0), "shrunk": (0.5, 3.0, 3.0), "block-sparse": (1.0, 2.0, 6.0)}
    monkeypatch.setattr(bench, "measure_interleaved", lambda calls, rounds: {n: summarize(seconds[n]) for n in calls})
    rows = bench.bench_to_file(folder, None, batches=[1], lengths=[8])["rows"]
    assert [(row["p50_ms"], row["speedup_within_rounds"]) for row in rows] == [(2e3, 1), (3e3, 2), (2e3, 1)]


@pytest.mark.parametrize("pruned", [True, False])
def test_why_answers_without_blocks_too(command, folder, tmp_path, pruned):
    """Found by a newcomer: nothing was said of a model of heads and rows alone."""
    changes = {"vocab_size": len(VOCABULARY)} | ({} if pruned else {"layers": ()})
    config = CONFIG.model_copy(update=changes)
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / MASKS).unlink()
    params = bench.random_params(config, 2, "classification")
    save_pretrained(tmp_path / "model", config, params, kind="classification")
    done = command("bench", tmp_path / "model", "--batch", "1", "--seq", "8", "--rounds", "1", "--why", "-q")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("no blocks to leave out") == 2 * 4
    assert "all products dense" not in done.stdout  # no more is expected of it


def test_why_all_products_are_dense_is_counted():
    facts = {"layer": 0, "product": "ffn", "shape": (64, 64), "block_shape": (16, 16), "density": 0.5, "tokens": 8}
    reasons = ("measured: xla 0.90x dense at 64x64", "asked for", "no blocks to leave out", "measured: xla 1.10x dense")
    decisions = [Decision(**facts, choice=Choice("dense", reason, 1.0)) for reason in reasons]
    told = "all products dense: measured to gain too little (2), asked for (1), no blocks to leave out (1)"
    assert bench.why_dense(decisions) == told
    assert bench.why_dense([*decisions, Decision(**facts, choice=Choice("xla", "asked for", None))]) is None


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
