"""Calibration: what it measures, in which order, and what it tells of that."""

import jax.numpy as jnp
import pytest

from pallas_kernels import KernelError, choose_for, load_table
from pallas_kernels.block_sparse_matmul import calibrate as calibration
from pallas_kernels.block_sparse_matmul import workloads
from pallas_kernels.block_sparse_matmul.costs import user_table_path
from pallas_kernels.device import hardware_name
from pallas_kernels.timing import Timing


def test_calibration_writes_a_table_that_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines = []
    facts = {
        "blocks": [(32, 32)],
        "densities": [0.01, 0.25, 0.26],
        "tokens": [4, 8],
        "dtypes": ["float32"],
        "rounds": 1,
        "side_by_side": [],
    }
    monkeypatch.setattr(calibration, "HOPELESS", 0.0)
    table = calibration.calibrate(shapes=[(64, 64)], details={"command": "test"}, report=lines.append, **facts)
    assert load_table(user_table_path(hardware_name())) == table
    # A quarter is the least there is of four blocks; no cell is measured twice.
    assert [(each.density, each.tokens) for each in table.entries] == [(0.25, 4), (0.25, 8)]
    assert len(lines) == 2
    assert table.measured["command"] == "test"
    assert choose_for(workloads.make_matrix((64, 64), (32, 32), 0.25, jnp.float32), 8).ratio is not None


def test_a_second_calibration_keeps_what_it_does_not_measure(tmp_path, monkeypatch):
    """Found by review: it began with an empty table, and what stopped it early left the user a stub."""
    facts = {"shapes": [(64, 64)], "blocks": [(32, 32)], "densities": [0.25], "dtypes": ["float32"], "rounds": 1}
    facts |= {"report": lambda line: None, "side_by_side": []}
    monkeypatch.setattr(calibration, "HOPELESS", 0.0)
    first = calibration.calibrate(tmp_path / "a.json", tokens=[4, 8], **facts)
    again = [calibration.calibrate(tmp_path / "a.json", tokens=[4], **facts) for _ in range(2)]
    for both in again:
        assert [each.tokens for each in both.entries] == [4, 8]
        assert both.entries[1] == first.entries[1]
    assert load_table(tmp_path / "a.json") == again[1]
    plain = {name: fact for name, fact in again[0].measured.items() if name != "others"}
    assert again[1].measured["others"] == [plain, first.measured]


def test_an_implementation_that_fails_at_a_cell_is_left_out_of_it(tmp_path, monkeypatch):
    serve, lines = calibration.as_served, []

    def failing(implementation, activation=None):
        product, held = serve(implementation, activation)

        def fail(x, w):
            raise RuntimeError("out of resource: shared memory")

        return (fail if implementation == "xla" else product), held

    monkeypatch.setattr(calibration, "as_served", failing)
    facts = {"shapes": [(64, 64)], "blocks": [(32, 32)], "densities": [0.25], "dtypes": ["float32"], "tokens": [4, 8]}
    with pytest.raises(KernelError, match="every sparse implementation failed on"):
        calibration.calibrate(tmp_path / "a.json", side_by_side=[], report=lines.append, seconds_limit=0.0, **facts)
    assert not (tmp_path / "a.json").exists()
    assert len(lines) == 1  # the limit holds where nothing could be measured, too
    assert "xla left out: RuntimeError: out of resource" in lines[0]


def test_calibration_also_measures_calls_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration.device, "cores", lambda: 2)
    facts = {"shapes": [(64, 64)], "blocks": [(32, 32)], "densities": [0.25], "dtypes": ["float32"], "rounds": 1}
    table = calibration.calibrate(tmp_path / "a.json", tokens=[4], side_by_side=[8], report=lambda line: None, **facts)
    assert [(each.tokens, each.at_once) for each in table.entries] == [(4, 1), (8, 2)]
    assert load_table(tmp_path / "a.json") == table


def test_a_chain_of_calls_counts_as_that_many(tmp_path, monkeypatch):
    """On a GPU one call alone would be timed with what starting it takes."""
    told = {}

    def measure(calls, rounds):
        told["outputs"] = len(calls["dense"]())
        return {name: Timing(6.0, 6.0, (6.0,)) for name in calls}

    monkeypatch.setattr(calibration, "CALLS_IN_A_CHAIN", {"cpu": 3})
    monkeypatch.setattr(calibration, "measure_interleaved", measure)
    facts = {"shapes": [(64, 64)], "blocks": [(32, 32)], "densities": [0.25], "dtypes": ["float32"], "tokens": [4]}
    table = calibration.calibrate(tmp_path / "a.json", side_by_side=[], report=lambda line: None, **facts)
    assert told["outputs"] == 3
    assert table.entries[0].seconds["dense"] == pytest.approx(2.0)


def test_what_is_made_for_cpus_is_not_calibrated_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration.device, "platform", lambda: "gpu")
    facts = {"shapes": [(64, 64)], "blocks": [(32, 32)], "densities": [0.25], "dtypes": ["float32"], "tokens": [4]}
    with pytest.raises(KernelError, match="nothing to calibrate"):
        calibration.calibrate(tmp_path / "a.json", report=lambda line: None, **facts)


def test_calibration_follows_fc1_by_its_gelu_where_that_decides(monkeypatch):
    assert [calibration._follows(shape) for shape in calibration.SHAPES] == [None] * 4
    monkeypatch.setattr(calibration.device, "platform", lambda: "gpu")
    assert [calibration._follows(shape) for shape in calibration.SHAPES] == [None, None, "gelu", None]


def test_calibration_leaves_out_the_hopeless_and_keeps_its_time(tmp_path, monkeypatch):
    facts = {"shapes": [(64, 64)], "blocks": [(32, 32)], "tokens": [4, 8], "dtypes": ["float32"], "rounds": 1}
    facts |= {"report": lambda line: None, "side_by_side": []}
    monkeypatch.setattr(calibration, "HOPELESS", 1e9)
    table = calibration.calibrate(tmp_path / "a.json", densities=[0.25, 0.5], **facts)
    assert [(each.density, each.tokens) for each in table.entries] == [(0.25, 4), (0.25, 8)]
    assert len(calibration.calibrate(tmp_path / "b.json", seconds_limit=0.0, **facts).entries) == 1


def test_what_time_ran_out_for_is_said_and_comes_first_in_the_next(tmp_path, monkeypatch):
    """Found by a newcomer: it ended part-way, said nothing of that, and began with the same again."""
    monkeypatch.setattr(calibration, "_measure", lambda *_: ({"dense": 2.0, "xla": 1.0}, 2.0))
    facts = {"shapes": [(64, 64), (128, 64)], "blocks": [(32, 32), (16, 16)], "densities": [0.25, 0.5], "tokens": [4]}
    facts |= {"dtypes": ["float32"], "side_by_side": []}
    lines, measured = [], []
    for _ in range(4):
        table = calibration.calibrate(tmp_path / "a.json", seconds_limit=0.0, report=lines.append, **facts)
        measured.append((table.entries[0].block_shape, table.entries[0].shape))
    assert measured == [((32, 32), (64, 64)), ((32, 32), (128, 64)), ((16, 16), (64, 64)), ((16, 16), (128, 64))]
    left = "float32 32x32: 64x64, 128x64; float32 16x16: 64x64, 128x64"
    assert f"time is over (0 s): 1 products measured, not to the end {left}." in lines[1]
    assert "begins with the matrices that have the fewest" in lines[1]
    assert len(table.entries) == 4
    whole, lines = calibration.calibrate(tmp_path / "a.json", report=lines.append, **facts), lines[8:]
    assert len(whole.entries) == 8
    assert not any("time is over" in line for line in lines)
