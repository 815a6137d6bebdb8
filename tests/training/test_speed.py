"""What a training's speed is made of."""

from types import SimpleNamespace

import jax
import pytest

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.training.speed import RATES, Meter, forward_flops, peak_memory, step_work

BASE = ModelConfig()


def test_flops_of_bert_base():
    """12 layers of 12 d^2 weights, two FLOP each, and two products of attention, 2 L^2 d each."""
    length, d = 128, 768
    wanted = 12 * (2 * length * 12 * d * d + 4 * length * length * d)
    assert forward_flops(BASE, 3, length) == 3 * wanted


def test_flops_where_the_last_layer_answers_for_the_first_token():
    """Keys and values of all tokens; a query, O and both FFN matrices of one; two products with L keys."""
    length, d = 128, 768
    wanted = forward_flops(BASE, 1, length) * 11 / 12 + 2 * (length * 2 + 10) * d * d + 4 * length * d
    assert forward_flops(BASE, 2, length, first_only=True) == 2 * wanted
    assert step_work(BASE, None, first_only=True)(1, length) == 3 * wanted


def test_removed_heads_and_rows_cost_nothing():
    half = LayerShape(heads=tuple(range(6)), ffn=tuple(range(1536)))
    small = BASE.model_copy(update={"layers": (half,) * 12})
    assert forward_flops(small, 1, 128) == forward_flops(BASE, 1, 128) / 2


def test_backward_counts_twice_and_the_teacher_once():
    forward = forward_flops(BASE, 8, 64)
    assert step_work(BASE, None)(8, 64) == 3 * forward
    assert step_work(BASE, BASE)(8, 64) == 4 * forward


def test_calls_that_compile_and_evaluations_are_left_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter(lambda rows, length: 1e6)
    for shape, seconds in (((4, 8), 30.0), ((4, 8), 0.5), ((4, 16), 20.0), ((4, 8), 0.5)):
        now[0] += seconds
        meter.count(shape, seconds)
    with meter.left_out():
        now[0] += 9.0
    values = meter.values()
    assert values["compile_seconds"] == 50.0
    assert values["seconds"] == 60.0
    assert values["steps_per_second"] == pytest.approx(2.0)
    assert values["tokens_per_second"] == pytest.approx(64.0)
    assert values["model_flops_per_second"] == pytest.approx(2e6)
    assert set(values) <= set(RATES)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12)],
)
def test_utilisation_where_the_peak_is_known(monkeypatch, kind, peak):
    """By the first name that is part of the device's own."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    meter = Meter(lambda rows, length: peak / 10, "bfloat16")
    meter.count((1, 1), 0.0)
    now[0] = 1.0
    meter.count((1, 1), 1.0)
    assert meter.values()["model_flop_utilisation"] == pytest.approx(0.1)


def test_on_a_cpu_there_is_no_utilisation_but_memory():
    meter = Meter(lambda rows, length: 1.0, "bfloat16")
    meter.count((1, 1), 0.0)
    meter.count((1, 1), 0.0)
    assert "model_flop_utilisation" not in meter.values()
    assert peak_memory() > 1 << 20
