"""SIGTERM and SIGINT as a request to stop at the next step; a second one ends the process at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils

from mlprune_jax.training.processes import several

_log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Inside a ``with``, the first signal only sets this; called, it says whether to stop.

    One within another, as a run's within a sweep's, passes on what it was asked when it ends.

    Python hands signals to the main thread alone: used in another, nothing is caught and nothing changes. Of several
    processes one alone may get the signal, and all must stop after the same step: jax's own SIGTERM handler sees to
    that, so this leaves it in its place and turns SIGINT into SIGTERM.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._asked = False
        self._calls = 0

    def __call__(self) -> bool:
        """Whether to stop here; every process must ask at the same places."""
        self._calls += 1
        if several():
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: _terminate} if several() else dict.fromkeys(SIGNALS, self._ask)
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if self._asked and isinstance(outer, StopRequest):
                outer._asked = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        _log.warning("%s: saving after this step; once more ends at once", signal.Signals(number).name)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
