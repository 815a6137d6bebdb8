"""A task by its name."""

from __future__ import annotations

from mlprune_jax.data.demo import DEMO
from mlprune_jax.data.squad import SQUAD, SquadTask
from mlprune_jax.data.tasks import GlueTask, glue_task, normalized


def named_task(name: str) -> GlueTask | SquadTask:
    """The generated demo task, SQuAD 1.1 ("squad") or 2.0 ("squad2"), or a GLUE task.

    Raises:
        ConfigError: there is none of that name.
    """
    return SQUAD.get(normalized(name)) or (DEMO if name == DEMO.name else glue_task(name))
