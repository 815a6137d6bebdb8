"""A model on an encoded split, whatever its task."""

from __future__ import annotations

from typing import Any

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.batches import eval_batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.tasks import Task
from mlprune_jax.data.windows import Windows
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.training.answer_metrics import evaluate_answers
from mlprune_jax.training.comparison import Outcomes
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.metrics import evaluate, make_forward


def evaluate_split(
    module: TaskModel,
    params: Any,
    encoded: Encoded,
    task: Task,
    settings: TaskSettings,
    *,
    batch_size: int,
    layout: Layout,
) -> Outcomes:
    """What a model says of a labelled split: its metrics are the task's, with the mean loss and the number of examples.

    Where there are some, also ``"skipped"``, damaged examples that were left out, and ``"truncated"``, those that were
    too long and were cut.

    Args:
        module: a task model, and ``params`` its parameters, whole on every process.
        encoded: the split; ``task`` what it is of, ``settings`` how it was encoded.
        batch_size: examples per forward, split over the devices of ``layout``.
        layout: the devices.
    """
    batches = eval_batches(encoded, batch_size=batch_size, buckets=settings.buckets)
    forward = make_forward(module, layout)
    params = layout.place(params)
    if isinstance(encoded, Windows):
        outcomes = evaluate_answers(forward, params, encoded, batches, settings)
    else:
        outcomes = evaluate(forward, params, batches, task.metrics, task.kind)
    counts = {"skipped": encoded.skipped, "truncated": encoded.truncated}
    return outcomes._replace(facts=outcomes.facts | {name: count for name, count in counts.items() if count})
