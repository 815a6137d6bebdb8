"""When a training saves: every so many steps or minutes, where it is evaluated, at its end, and when asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlprune_jax.errors import Preempted
from mlprune_jax.training.checkpoint import Checkpoints
from mlprune_jax.training.processes import agree, is_first, several
from mlprune_jax.training.state import TrainState

CLOCK_STEPS = 16
"""Steps between two looks at the clock where several processes must agree on it."""


class Keeper:
    """Sees every step's state, and saves it where that is due.

    Args:
        checkpoints: where to.
        steps: between two checkpoints; ``None``: by time alone.
        minutes: between two checkpoints.
        stopping: whether the process was asked to stop.
        evaluate: the dev metric of the state after a step, ``None`` where it is not due; the best so measured is kept.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        steps: int | None,
        minutes: float,
        stopping: Callable[[], bool] = bool,
        evaluate: Callable[[int, TrainState], float | None] = lambda number, state: None,
    ):
        self._checkpoints, self._steps, self._seconds, self._stopping = checkpoints, steps, 60 * minutes, stopping
        self._evaluate = evaluate
        self._saved_at = time.monotonic()

    def after(self, number: int, state: TrainState) -> None:
        """Called with the state after step ``number``.

        Raises:
            Preempted: the process was asked to stop; the state is on disk.
            MLPruneError: a checkpoint could not be written.
        """
        metric = self._evaluate(number, state)
        if metric is not None or (self._steps is not None and number % self._steps == 0) or self._time_is_up(number):
            self._checkpoints.save(number, state, metric)
            self._saved_at = time.monotonic()
        if self._stopping():
            self.finish(number, state)
            raise Preempted(
                f"stopped after step {number}, as asked; its state is saved", hint="go on with `mlprune resume`"
            )

    def finish(self, number: int, state: TrainState) -> None:
        """See that the state after the last step is on disk.

        Raises:
            MLPruneError: it could not be written.
        """
        if self._checkpoints.newest != number:
            self._checkpoints.save(number, state)
        self._checkpoints.wait()

    def best(self, state: TrainState) -> TrainState:
        """The state that measured best, or ``state``, the last one, where none was measured."""
        return state if self._checkpoints.best is None else self._checkpoints.restore_best(state)

    def newest(self) -> str:
        """Names the newest checkpoint, for a message."""
        step = self._checkpoints.newest
        return "no checkpoint yet" if step is None else f"checkpoint {self._checkpoints.folder / f'{step:08d}'}"

    def write_batch(self, number: int, batch: dict[str, Any]) -> Path:
        """Write a step's batch to look at; of several processes, the first one's rows."""
        path = self._checkpoints.folder / f"batch-{number:08d}.npz"
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **batch)
        return path

    def close(self) -> None:
        """Called when the training ends in any way: no save stays under way in a process that goes on."""
        self._checkpoints.close()

    def _time_is_up(self, number: int) -> bool:
        if several() and number % CLOCK_STEPS:
            return False
        return bool(agree(int(time.monotonic() - self._saved_at >= self._seconds)))
