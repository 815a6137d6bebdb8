"""The loop around the step: batches in, metrics out, without stalling the device."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import jax

from mlprune_jax.errors import NumericalError
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.speed import Meter
from mlprune_jax.training.state import Fixed, TrainState
from mlprune_jax.training.step import Step

_log = logging.getLogger(__name__)

Log = Callable[[int, dict[str, float]], None]

MAX_SKIPPED = 10
AHEAD = 2
"""Steps that may wait for the device: enough to keep it busy, and few to wait for where a run is asked to stop."""


def fit(
    step: Step,
    state: TrainState,
    fixed: Fixed,
    batches: Iterable[dict[str, Any]],
    *,
    steps: int,
    seed: int,
    log: Log,
    log_every: int,
    keeper: Keeper,
    layout: Layout,
    meter: Meter,
) -> TrainState:
    """Run ``step`` over ``batches``.

    So that the device need not wait, batches are made in threads, and the host goes up to `AHEAD` steps ahead of it. No
    more: a signal, which Python looks at between two steps, would be heeded only when all that are queued are done.

    Args:
        step: from `make_train_step`.
        state: before the first batch, new or restored; its buffers are donated.
        fixed: what the step only reads.
        batches: in the order of steps; this process's rows of each.
        steps: number of the last step.
        seed: of dropout.
        log: receives (step, metrics) every ``log_every`` steps and after the last.
        log_every: steps between logs.
        keeper: saves the state, and stops where the process was asked to; closed at the end.
        layout: where batches go.
        meter: counts the steps.

    Raises:
        Preempted: stopped between two steps; the state is saved.
        NumericalError: `MAX_SKIPPED` steps in a row had a loss or gradient that was not finite.
    """
    key = layout.key(seed)
    first = int(state.step)
    number = first
    queued: deque[jax.Array] = deque()
    with closing(keeper):
        for number, local in enumerate(batches, start=first + 1):
            called = time.perf_counter()
            batch = layout.batch(local)
            state, metrics = step(state, fixed, batch, key)
            meter.count(batch["input_ids"].shape, time.perf_counter() - called)
            if number % log_every == 0 or number == steps:  # before a stop: no step is taken again for its line
                _report(number, metrics, meter, log, keeper, local)
            queued.append(metrics["skipped"])  # of the metrics any one: all come when the step is done
            if len(queued) > AHEAD:
                jax.block_until_ready(queued.popleft())
            keeper.after(number, state)
        keeper.finish(number, state)
    return state


def _report(
    number: int, metrics: dict[str, Any], meter: Meter, log: Log, keeper: Keeper, batch: dict[str, Any]
) -> None:
    """Log the metrics of step ``number``; end the run where they have not been finite for too long."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    log(number, values | meter.values())
    if values["skipped"]:
        _log.warning("step %d: loss or gradient not finite, nothing changed; %d in a row", number, values["skipped"])
    if values["skipped"] >= MAX_SKIPPED:
        raise NumericalError(
            f"loss or gradient was not finite for {int(values['skipped'])} steps in a row, up to step {number}",
            hint=f"look at that step's batch, {keeper.write_batch(number, batch)}; {keeper.newest()} holds finite "
            "weights; a lower learning rate takes a new run, from the stages that are finished (docs/long-runs.md)",
        )
