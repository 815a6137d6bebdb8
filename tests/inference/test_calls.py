"""Batches cut into calls: the same answers, and no call for nothing."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.inference import calls
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.calls import begin_calls, begun_ahead, plan_calls
from mlprune_jax.inference.runtime import Served, compile_model
from pallas_kernels.block_sparse_matmul.costs import CostTable, Entry
from pallas_kernels.device import hardware_name
from tests.inference.conftest import CONFIG, batch, close, masked, plain_logits


@pytest.fixture(scope="module")
def packed():
    model = masked()
    return assemble(model.params, model.masks, CONFIG, "float32")[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_calls_side_by_side_answer_in_order(rows):
    inputs = [np.arange(12).reshape(6, 2), np.arange(6)]
    finish = begin_calls(lambda a, b: jnp.asarray(a.sum(1) * 10 + b), inputs, rows)
    for _ in range(2):  # whoever asks again gets the same
        np.testing.assert_array_equal(finish(), inputs[0].sum(1) * 10 + inputs[1])


def test_a_batch_of_one_call_is_begun_and_not_waited_for():
    class Pending:
        """A result on its way to the host."""

        asked = waited = False

        def copy_to_host_async(self):
            self.asked = True

        def __array__(self, dtype=None, copy=None):
            self.waited = True
            return np.arange(4)

    result = Pending()
    finish = begin_calls(lambda part: result, [np.arange(4)], 4)
    assert result.asked
    assert not result.waited
    np.testing.assert_array_equal(finish(), np.arange(4))


def test_calls_run_at_once(monkeypatch):
    monkeypatch.setattr(calls, "cores", lambda: 2)
    calls._workers.cache_clear()
    both = threading.Barrier(2, timeout=20)  # broken, unless two calls meet at it

    def call(part):
        both.wait()
        return part

    np.testing.assert_array_equal(begin_calls(call, [np.arange(4)], 1)(), np.arange(4))
    calls._workers.cache_clear()


def test_what_a_call_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        begin_calls(lambda part: 1 // 0, [np.arange(4)], 2)()


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 0), ("gpu", calls.AHEAD)])
def test_batches_are_begun_ahead_on_accelerators_alone(device, ahead, monkeypatch):
    """And no more of them than told, since their results are all held."""
    monkeypatch.setattr(calls, "platform", lambda: device)
    begun = []
    found = [(item, len(begun)) for item in begun_ahead(begun.append(i) or i for i in range(6))]
    assert found == [(i, min(i + 1 + ahead, 6)) for i in range(6)]


@pytest.mark.parametrize(
    ("batch_size", "length", "rows"),
    [(1, 128, 1), (4, 128, 4), (8, 128, 4), (32, 128, 4), (31, 128, 4), (9, 128, 3), (2, 2048, 1), (7, 32, 7)],
)
def test_rows_of_a_call(packed, batch_size, length, rows):
    found, decisions = plan_calls(packed, batch_size, length, "float32", None, None)
    assert found == rows
    assert decisions[0].tokens == rows * length
    assert decisions[-1].tokens == rows  # behind the last attention, the first token alone


@pytest.mark.parametrize(("batch_size", "picked"), [(1, {"dense"}), (64, {"dense", "xla"})])
def test_products_are_judged_by_times_side_by_side_where_calls_are(packed, batch_size, picked):
    entries = [
        Entry("float32", (64, 192), (16, 16), density, 512, {"dense": gain, "xla": 1.0}, at_once)
        for density in (0.1, 1.0)
        for gain, at_once in ((1.0, 1), (3.0, 2))
    ]
    table = CostTable(hardware_name(), {}, tuple(entries))
    _, decisions = plan_calls(packed, batch_size, 512, "float32", None, table)
    assert {d.choice.implementation for d in decisions} == picked


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_rows_that_nobody_sent_are_not_computed(rows, monkeypatch):
    monkeypatch.setattr(calls, "TOKENS", 16)
    model, seen = masked(), []
    served = Served(CONFIG, model.params, model.masks, "classification")
    compiled = compile_model(served, batch_sizes=[4], lengths=[16], implementation="xla")
    only = compiled._executables[4, 16]
    counted = only._replace(call=lambda *inputs: seen.append(1) or only.call(*inputs))
    monkeypatch.setitem(compiled._executables, (4, 16), counted)
    inputs = batch(rows, 16)
    close(compiled.logits(*inputs), plain_logits(CONFIG, model.params, "classification", inputs))
    assert len(seen) == rows
