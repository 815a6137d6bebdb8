"""SIGTERM and SIGINT as a request to stop at the next step; a second one ends the process at once."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Inside a ``with``, the first signal only sets this; called, it says whether one came.

    Python hands signals to the main thread alone: used in another, nothing is caught and nothing changes.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._asked = False

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        _log.warning("%s: saving after this step; once more ends at once", signal.Signals(number).name)
