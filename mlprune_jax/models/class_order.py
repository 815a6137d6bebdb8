"""A stored classifier brought into the order of a task's classes, which other software may have trained otherwise."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlprune_jax.models.pretrained import Pretrained

_log = logging.getLogger(__name__)


def in_task_order(loaded: Pretrained, spellings: Sequence[Sequence[str]], folder: Path) -> Pretrained:
    """The same model with its outputs in the order of a task's classes.

    Where the head's classes have the task's names, apart from case and punctuation, they are matched by name. Names
    that are not the task's (LABEL_0, say) cannot be matched: the outputs are taken as they stand, with a warning.

    Args:
        loaded: a model; one without class names is returned as it is.
        spellings: the task's class names in the order of their ids, once for each way in which they are written.
        folder: for the messages.
    """
    if loaded.labels is None:
        return loaded
    order = next(filter(None, (_order(loaded.labels, names) for names in spellings)), None)
    listed = ", ".join(loaded.labels)[:200]
    if order is None:
        wanted = ", ".join(spellings[0])[:200]
        _log.warning("%s calls its classes %s: taken, in this order, as the task's %s", folder, listed, wanted)
        return loaded
    if order == sorted(order):
        return loaded
    _log.info("%s has its classes in the order %s: brought into the task's", folder, listed)
    head: dict[str, Any] = {
        name: np.ascontiguousarray(leaf[..., order]) for name, leaf in loaded.params["head"].items()
    }
    labels = tuple(loaded.labels[output] for output in order)
    return loaded._replace(params=loaded.params | {"head": head}, labels=labels)


def _order(stored: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """For each wanted class the output that stands for it; None unless both have the same names."""
    for spell in (str, _plain):
        outputs = {spell(name): output for output, name in enumerate(stored)}
        names = [spell(name) for name in wanted]
        if len(outputs) == len(stored) and len(set(names)) == len(names) and outputs.keys() == set(names):
            return [outputs[name] for name in names]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()
