"""The GPU bench as far as a CPU goes: what it runs, writes, continues, refuses, and when it stops."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import KernelError
from pallas_kernels.block_sparse_matmul import bench, bench_cells, dense, roofline, workloads
from pallas_kernels.block_sparse_matmul.bench_record import Budget, Record
from pallas_kernels.block_sparse_matmul.bench_table import cost_table
from pallas_kernels.block_sparse_matmul.chains import chain, chain_length
from pallas_kernels.block_sparse_matmul.costs import load_table, save_table
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiling import check

ENVIRONMENT = {"device_kind": "cpu", "jax": "1", "dry_run": True}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(bench.workloads, "MASK_KINDS", ("random", "all empty"))


def test_says_that_there_is_no_gpu(capsys, tmp_path):
    assert bench.main(["--out", str(tmp_path / "b.json")]) == 2
    assert "default device is a cpu" in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


def test_dry_run(few, tmp_path, capsys):
    out = tmp_path / "b.json"
    assert bench.main(["--dry-run", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["complete"]
    assert found["environment"]["device_kind"] == "cpu"
    cells = found["cells"]
    assert [key.split("/")[1] for key in cells if key.endswith("32x32/tiny/float16")] == ["reference", "dense", "xla"]
    assert all(cell["ok"] for key, cell in cells.items() if key.startswith("correctness/"))
    timed = cells["grid/16/tiny/0.1/32x32/chain of 8"]
    assert set(timed["microseconds"]) == {"dense", "xla"}
    assert timed["without"] == {}
    assert timed["fraction_of_floor"]["xla"] > 0

    capsys.readouterr()
    assert bench.main(["--dry-run", "--out", str(out)]) == 0  # nothing is left to measure
    assert capsys.readouterr().out.startswith("correct or refused: 9 of 9")
    assert json.loads(out.read_text())["cells"] == cells


def test_stops_before_the_time_is_up(tmp_path, capsys):
    out = tmp_path / "b.json"
    assert bench.main(["--dry-run", "--out", str(out), "--seconds", "0"]) == 0
    assert json.loads(out.read_text()) | {"environment": 0} == {"environment": 0, "cells": {}, "complete": False}
    assert "goes on where this run ended" in capsys.readouterr().out


def test_budget_keeps_room_for_one_more_cell():
    budget = Budget(100.0)
    assert budget.allows()
    budget.spent(90.0)
    assert not budget.allows()


def measured(record, *cells):
    bench.run(record, Budget(60.0), iter(cells))
    return json.loads(record.path.read_text())["cells"]


def test_what_did_not_come_off_is_tried_again(tmp_path):
    """The compiler, what is installed, or the kernel may be another by then; cells name the commit they are of."""

    def fails():
        raise ZeroDivisionError("compiler")

    def refuses():
        raise KernelError("needs a GPU")

    path = tmp_path / "b.json"
    cells = measured(
        Record(path, ENVIRONMENT | {"commit": "old"}),
        ("a", fails),
        ("b", refuses),
        ("c", lambda: {"ok": False, "kinds": {}}),
        ("d", lambda: {"x": 1.0}),
    )
    assert cells["a"]["failed"] == "ZeroDivisionError: compiler"
    assert cells["b"]["refused"] == "needs a GPU"
    again = [(key, lambda: {"x": 2.0}) for key in "abcd"]
    cells = measured(Record(path, ENVIRONMENT | {"commit": "new"}), *again)
    assert [(cell["x"], cell["commit"]) for cell in cells.values()] == [(2.0, "new")] * 3 + [(1.0, "old")]


def test_cell_that_ended_a_run_is_skipped(tmp_path):
    path = tmp_path / "b.json"
    Record(path, ENVIRONMENT).begin("hangs")
    cells = measured(Record(path, ENVIRONMENT), ("hangs", lambda: {"x": 1.0}), ("next", lambda: {"x": 1.0}))
    assert cells["hangs"] == {"failed": "a run ended inside this cell", "skip": True}
    assert cells["next"]["x"] == 1.0


def test_dead_device_ends_the_run(tmp_path, monkeypatch):
    def dies():
        monkeypatch.setattr(bench.jnp, "zeros", lambda *_: 1 / 0)
        raise RuntimeError("illegal address")

    path = tmp_path / "b.json"
    with pytest.raises(KernelError, match=r"answers no more after bad \(illegal address\); start again"):
        bench.run(Record(path, ENVIRONMENT), Budget(60.0), iter([("bad", dies)]))
    assert json.loads(path.read_text())["begun"] == "bad"


@pytest.mark.parametrize("text", ["not json", "[]", "{}"])
def test_refuses_a_file_of_something_else(text, tmp_path, capsys):
    out = tmp_path / "b.json"
    out.write_text(text)
    assert bench.main(["--dry-run", "--out", str(out)]) == 2
    assert "is no record of this bench" in capsys.readouterr().err
    assert out.read_text() == text


def test_refuses_cells_of_another_device(tmp_path):
    path = tmp_path / "b.json"
    Record(path, ENVIRONMENT | {"device_kind": "NVIDIA H200"}).add("a", {})
    with pytest.raises(KernelError, match=r"another run: device_kind NVIDIA H200 \(now cpu\)"):
        Record(path, ENVIRONMENT)


def test_wrong_answer_is_reported_and_not_timed(few, tmp_path, monkeypatch, capsys):
    def wrong(x, w, bias, residual, activation):
        return jnp.full((x.shape[0], w.shape[1]), jnp.nan, x.dtype)

    monkeypatch.setattr(bench_cells, "_through_api", lambda name, *a: wrong(*a))
    options = [
        "--dry-run",
        "--implementations",
        "xla",
        "--steps",
        "correctness,grid",
        "--out",
        str(tmp_path / "b.json"),
    ]
    assert bench.main(options) == 1
    assert "WRONG: random, all empty" in capsys.readouterr().out
    cells = json.loads((tmp_path / "b.json").read_text())["cells"]
    assert cells["correctness/xla/32x32/tiny/bfloat16"]["kinds"]["random"]["error"] == "nan"
    assert set(cells["grid/16/tiny/0.1/32x32/chain of 8"]["microseconds"]) == {"dense"}


def test_unknown_step(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--steps", "grid,dance"])
    assert "--steps knows correctness,grid,probes,sweep; got dance" in capsys.readouterr().err


def test_a_dry_run_makes_no_table(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--dry-run", "--table", str(tmp_path / "t.json"), "--out", str(tmp_path / "b.json")])
    assert "--table takes measured cells" in capsys.readouterr().err


def test_grid_becomes_a_cost_table(tmp_path):
    """Of three designs the one that runs by default counts; single calls and failures do not."""
    record = Record(tmp_path / "b.json", bench.environment(True, ["--quick"]) | {"device_kind": "NVIDIA H200"})
    times = {"dense": 30.0, "mosaic_gpu:streaming": 20.0, "mosaic_gpu:x_stationary": 15.0, "triton": 18.0}
    cell = {"microseconds": times, "shared_blocks": 100, "multiprocessors": 132}
    record.add("grid/4096/FC1/0.1/64x64/chain of 64", cell)
    record.add("grid/512/FC1/0.1/64x64/chain of 1", cell)
    record.add("grid/4096/FC2/0.1/64x64/chain of 64", {"failed": "compiler"})
    save_table(cost_table(record), tmp_path / "table.json")
    table = load_table(tmp_path / "table.json")
    assert table.hardware == "NVIDIA H200"
    assert table.measured["command"] == "python -m pallas_kernels.block_sparse_matmul.bench --quick"
    (entry,) = table.entries
    assert entry.seconds == pytest.approx({"dense": 30e-6, "mosaic_gpu": 15e-6, "triton": 18e-6})
    assert (entry.tokens, entry.shape, entry.block_shape, entry.density) == (4096, (768, 3072), (64, 64), 0.1)


@pytest.mark.parametrize(("matrix", "has_gelu"), [("QKV", False), ("O", False), ("FC1", True), ("FC2", False)])
def test_each_matrix_is_followed_by_what_follows_it_in_a_model(matrix, has_gelu):
    """Dense and sparse alike: a GELU costs XLA's dense product more than a kernel that fuses it."""
    d_in, d_out = workloads.MATRICES[matrix]
    named = bench_cells.products(("dense",))
    layers = bench_cells.Layers(8, matrix, (64, 64), named, length=1)
    w = workloads.make_matrix((d_in, d_out), (64, 64), 0.1, jnp.bfloat16)
    x, bias = [jnp.ones((8, d_in), jnp.bfloat16)], jnp.ones(d_out, jnp.bfloat16)
    for layer, weight in ((layers.dense, jnp.ones((d_in, d_out), jnp.bfloat16)), (layers.sparse["dense"], w)):
        assert ("erf" in layer.lower(x, weight, bias).as_text()) == has_gelu


@pytest.mark.parametrize(("tokens", "calls"), [(128, 64), (4096, 64), (16384, 17), (131072, 8)])
def test_chains_of_large_products_are_shorter(tokens, calls):
    """By hand: 2 GiB over 16384 x 3840 numbers of two bytes."""
    assert chain_length(tokens, (768, 3072), jnp.bfloat16) == calls


def test_cells_of_another_meaning_are_not_gone_on_with(tmp_path):
    Record(tmp_path / "b.json", ENVIRONMENT).write()
    with pytest.raises(KernelError, match=r"holds cells of another run: cells None \(now 2\)"):
        Record(tmp_path / "b.json", ENVIRONMENT | {"cells": 2})


def test_products_of_a_chain_stay_apart():
    """Each call of a chain is a product of its own in the program that XLA gets to compile."""
    layer = chain(partial(bench_cells.layer, dense.multiply, "gelu"))
    xs = [jnp.ones((16, 32), jnp.bfloat16)] * 3
    text = jax.jit(layer).lower(xs, jnp.ones((32, 32), jnp.bfloat16), jnp.ones(32, jnp.bfloat16)).as_text()
    assert text.count("dot_general") == 3
    assert text.count("optimization_barrier") == 2


def test_roofline_counts_flop_and_bytes():
    """4096 tokens through FC1 at density 0.5: compute bound; 128 tokens: memory bound. By hand."""
    many = roofline.floor(4096, (768, 3072), 768 * 3072 // 2, 2, "NVIDIA H200")
    assert many.flop == 4096 * 768 * 3072
    assert many.seconds == pytest.approx(4096 * 768 * 3072 / 790e12 + 2e-6)
    few = roofline.floor(128, (768, 3072), 768 * 3072, 2, "NVIDIA H100 80GB HBM3")
    assert few.bytes == 2 * (128 * (768 + 3072) + 768 * 3072)
    assert few.seconds == pytest.approx(few.bytes / (0.85 * 3.35e12) + 2e-6)


@pytest.mark.parametrize("design", ["streaming", "x_stationary", "x_shared"])
def test_sweep_has_tilings_that_fit(design):
    tilings = bench_cells.neighbours(design, 4096, (768, 3072), (32, 32), 400)
    fitting = 0
    for tiling in tilings:
        try:
            check(tiling, (768, 3072), (32, 32))
            fitting += 1
        except KernelError:
            continue
    assert fitting >= 4
