"""A task by its name."""

from __future__ import annotations

from mlprune_jax.data.demo import DEMO
from mlprune_jax.data.tasks import GlueTask, glue_task


def named_task(name: str) -> GlueTask:
    """The generated demo task, or a GLUE task.

    Raises:
        ConfigError: there is none of that name.
    """
    return DEMO if name == DEMO.name else glue_task(name)
