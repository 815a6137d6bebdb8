"""Batches cut into calls: the same answers, no call for nothing, and only where it pays."""

import threading

import numpy as np
import pytest

from mlprune_jax.inference import calls
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.calls import plan_calls, run_calls
from mlprune_jax.inference.runtime import Served, compile_model
from pallas_kernels.block_sparse_matmul.costs import CostTable, Entry
from pallas_kernels.device import hardware_name
from tests.inference.conftest import CONFIG, batch, close, masked, plain_logits


def table(gain, shapes=((64, 192), (32, 32))):
    """A device on which ``xla`` is that many times as fast as dense for these matrices, and slow for the others."""
    entries = [
        Entry("float32", shape, (16, 16), density, 16, {"dense": gain, "xla": 1.0})
        for shape in shapes
        for density in (0.1, 1.0)
    ]
    return CostTable(hardware_name(), {}, tuple(entries))


@pytest.fixture(scope="module")
def packed():
    model = masked()
    return assemble(model.params, model.masks, CONFIG, "float32")[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_calls_side_by_side_answer_in_order(rows):
    inputs = [np.arange(12).reshape(6, 2), np.arange(6)]
    found = run_calls(lambda a, b: a.sum(1) * 10 + b, inputs, rows)
    np.testing.assert_array_equal(found, inputs[0].sum(1) * 10 + inputs[1])


def test_calls_run_at_once(monkeypatch):
    monkeypatch.setattr(calls.os, "cpu_count", lambda: 2)
    calls._workers.cache_clear()
    both = threading.Barrier(2, timeout=20)  # broken, unless two calls meet at it

    def call(part):
        both.wait()
        return part

    np.testing.assert_array_equal(run_calls(call, [np.arange(4)], 1), np.arange(4))
    calls._workers.cache_clear()


def test_what_a_call_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        run_calls(lambda part: 1 // 0, [np.arange(4)], 2)


@pytest.mark.parametrize(
    ("batch_size", "length", "implementation", "rows"),
    [
        (1, 128, None, 1),
        (8, 128, None, 8),
        (32, 128, None, 8),
        (31, 128, None, 8),
        (9, 128, None, 5),
        (2, 2048, None, 1),
        (8, 128, "xla", 1),
        (7, 32, "xla", 4),
    ],
)
def test_rows_of_a_call(packed, batch_size, length, implementation, rows):
    found, decisions = plan_calls(packed, batch_size, length, "float32", implementation, None)
    assert found == rows
    assert decisions[0].tokens == rows * length
    assert decisions[-1].tokens == rows  # behind the last attention, the first token alone


def test_small_calls_where_sparse_products_gain(packed):
    rows, decisions = plan_calls(packed, 64, 16, "float32", None, table(3.0))
    assert rows == 8
    assert {d.choice.implementation for d in decisions if d.block_shape} == {"xla"}


def test_one_small_gain_does_not_cut_up_the_batch(packed):
    """Dense products lose a tenth in small calls: more than one of a model's products wins here."""
    narrow = table(1.25, shapes=((32, 16),))
    rows, decisions = plan_calls(packed, 64, 16, "float32", None, narrow)
    assert rows == 64
    assert decisions[0].tokens == 64 * 16
    assert {d.choice.implementation for d in decisions} == {"dense"}
    assert any("too little of the model" in d.choice.reason for d in decisions)
    _, alone = plan_calls(packed, 8, 16, "float32", None, narrow)  # nothing is cut up there: every gain counts
    assert {d.choice.implementation for d in alone} == {"dense", "xla"}


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_rows_that_nobody_sent_are_not_computed(rows, monkeypatch):
    monkeypatch.setattr(calls, "UNROLLED_TOKENS", 16)
    model, seen = masked(), []
    served = Served(CONFIG, model.params, model.masks, "classification")
    compiled = compile_model(served, batch_sizes=[4], lengths=[16], implementation="xla")
    only = compiled._executables[4, 16]
    counted = only._replace(call=lambda *inputs: seen.append(1) or only.call(*inputs))
    monkeypatch.setitem(compiled._executables, (4, 16), counted)
    inputs = batch(rows, 16)
    close(compiled.logits(*inputs), plain_logits(CONFIG, model.params, "classification", inputs))
    assert len(seen) == rows
