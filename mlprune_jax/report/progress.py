"""Progress of a run: one live line on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

SHOWN = ("loss", "task", "density", "strength", "tokens_per_second")


def progress_display(quiet: bool) -> Callable[[dict[str, Any]], None]:
    """What shows an entry of ``metrics.jsonl``; nothing where ``quiet``."""
    if quiet:
        return lambda entry: None
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda entry: _log.info("%s", describe(entry))

    def show(entry: dict[str, Any]) -> None:
        end = "\n" if entry["step"] == entry["steps"] else "\r"
        console.print(describe(entry).ljust(console.width - 1)[: console.width - 1], end=end, highlight=False)

    return show


def describe(entry: dict[str, Any]) -> str:
    """One line of progress: where the stage stands and what is worth watching."""
    measured = [name for name in entry if name.startswith("dev_")]
    values = "  ".join(f"{name} {entry[name]:.4g}" for name in (*measured, *SHOWN) if name in entry)
    text = f"{entry['stage']} {entry['step']}/{entry['steps']}  {values}"
    if "steps_per_second" not in entry:  # of an evaluation, or while all steps so far compiled
        return text
    return f"{text}  {(entry['steps'] - entry['step']) / entry['steps_per_second']:.0f} s left"
