"""When a training saves: every so many steps or minutes, at its end, and when it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlprune_jax.errors import Preempted
from mlprune_jax.training.checkpoint import Checkpoints
from mlprune_jax.training.state import TrainState


class Keeper:
    """Sees every step's state, and saves it where that is due.

    Args:
        checkpoints: where to.
        steps: between two checkpoints; ``None``: by time alone.
        minutes: between two checkpoints.
        stopping: whether the process was asked to stop.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, steps: int | None, minutes: float, stopping: Callable[[], bool] = bool
    ):
        self._checkpoints, self._steps, self._seconds, self._stopping = checkpoints, steps, 60 * minutes, stopping
        self._saved_at = time.monotonic()

    def after(self, number: int, state: TrainState) -> None:
        """Called with the state after step ``number``.

        Raises:
            Preempted: the process was asked to stop; the state is on disk.
            MLPruneError: a checkpoint could not be written.
        """
        if self._stopping():
            self.finish(number, state)
            raise Preempted(
                f"stopped after step {number}, as asked; its state is saved", hint="go on with `mlprune resume`"
            )
        by_step = self._steps is not None and number % self._steps == 0
        if by_step or time.monotonic() - self._saved_at >= self._seconds:
            self._checkpoints.save(number, state)
            self._saved_at = time.monotonic()

    def finish(self, number: int, state: TrainState) -> None:
        """See that the state after the last step is on disk.

        Raises:
            MLPruneError: it could not be written.
        """
        if self._checkpoints.newest != number:
            self._checkpoints.save(number, state)
        self._checkpoints.wait()

    def close(self) -> None:
        """Called when the training ends in any way: no save stays under way in a process that goes on."""
        self._checkpoints.close()
