"""The loop around the step: batches in, metrics out, without stalling the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import jax

from mlprune_jax.errors import NumericalError
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.state import Fixed, TrainState
from mlprune_jax.training.step import Step

Log = Callable[[int, dict[str, float]], None]

MAX_SKIPPED = 10


def fit(
    step: Step,
    state: TrainState,
    fixed: Fixed,
    batches: Iterable[dict[str, Any]],
    *,
    seed: int,
    log: Log,
    log_every: int,
    keeper: Keeper,
) -> TrainState:
    """Run ``step`` over ``batches``.

    Args:
        step: from `make_train_step`.
        state: before the first batch, new or restored; its buffers are donated.
        fixed: what the step only reads.
        batches: in the order of steps.
        seed: of dropout.
        log: receives (step, metrics) every ``log_every`` steps and after the last.
        log_every: steps between logs.
        keeper: saves the state, and stops where the process was asked to; closed at the end.

    Raises:
        Preempted: stopped between two steps; the state is saved.
        NumericalError: `MAX_SKIPPED` steps in a row had a loss or gradient that was not finite.
    """
    key = jax.random.key(seed)
    first = int(state.step)
    started, tokens, number, metrics = time.perf_counter(), 0, first, {}
    with closing(keeper):
        for number, batch in enumerate(batches, start=first + 1):
            state, metrics = step(state, fixed, batch, key)
            tokens += batch["input_ids"].size
            if number % log_every == 0:
                _report(number, metrics, number - first, started, tokens, log)
            keeper.after(number, state)
        if number % log_every and number > first:
            _report(number, metrics, number - first, started, tokens, log)
        keeper.finish(number, state)
    return state


def _report(number: int, metrics: dict[str, Any], steps: int, started: float, tokens: int, log: Log) -> None:
    """Log the metrics of step ``number``; ``steps`` and ``tokens`` are those since ``started``."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    seconds = time.perf_counter() - started
    speed = {"steps_per_second": steps / seconds, "tokens_per_second": tokens / seconds}
    log(number, values | {"seconds": seconds} | speed)
    if values["skipped"] >= MAX_SKIPPED:
        raise NumericalError(
            f"loss or gradient was not finite for {int(values['skipped'])} steps in a row, up to step {number}",
            hint="lower the learning rate, or look at the batch of that step; checkpoints hold the last finite weights",
        )
