"""A model's scores on an encoded split, whatever its task."""

from __future__ import annotations

from typing import Any

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.batches import eval_batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.tasks import Task
from mlprune_jax.data.windows import Windows
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.training.answer_metrics import evaluate_answers
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.metrics import evaluate, make_forward


def score_split(
    module: TaskModel,
    params: Any,
    encoded: Encoded,
    task: Task,
    settings: TaskSettings,
    *,
    batch_size: int,
    layout: Layout,
) -> dict[str, Any]:
    """The task's metrics, the mean loss and the number of examples of a labelled split.

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
        scores = evaluate_answers(forward, params, encoded, batches, settings)
    else:
        scores = evaluate(forward, params, batches, task.metrics, task.kind)
    counts = {"skipped": encoded.skipped, "truncated": encoded.truncated}
    return scores | {name: count for name, count in counts.items() if count}
