"""A task by its name."""

from __future__ import annotations

import difflib

from mlprune_jax.data.demo import DEMO
from mlprune_jax.data.squad import SQUAD, SquadTask
from mlprune_jax.data.tasks import GLUE, GlueTask, normalized
from mlprune_jax.errors import ConfigError

_TASKS: dict[str, GlueTask | SquadTask] = {**GLUE, **SQUAD, DEMO.name: DEMO}


def named_task(name: str, *, others: tuple[str, ...] = ("custom",)) -> GlueTask | SquadTask:
    """The generated demo task, SQuAD 1.1 ("squad") or 2.0 ("squad2"), or a GLUE task.

    Case and punctuation do not matter ("SST-2", "sst2"). The hint offers ``others`` too, names that the caller
    knows.

    Raises:
        ConfigError: there is none of that name.
    """
    task = _TASKS.get(normalized(name))
    if task is None:
        near = difflib.get_close_matches(normalized(name), _TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join((*_TASKS, *others))}"
        raise ConfigError(f"no task {name!r}", hint=hint)
    return task
