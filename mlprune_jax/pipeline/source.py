"""A run's data: the task that its settings name, and its splits, encoded."""

from __future__ import annotations

import logging
from typing import Any

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.custom import load_custom
from mlprune_jax.data.encode import Encoded, encode
from mlprune_jax.data.glue import load_examples
from mlprune_jax.data.named import named_task
from mlprune_jax.data.squad import Questions, SquadTask, load_squad
from mlprune_jax.data.tasks import Examples, GlueTask, Task
from mlprune_jax.data.windows import Windows, encode_windows
from mlprune_jax.errors import DataError

_log = logging.getLogger(__name__)


def load_splits(
    settings: TaskSettings, source: str, splits: tuple[str, ...], *, offline: bool = False
) -> tuple[Task, dict[str, Examples]]:
    """The task and the examples of ``splits``; every split must have labels.

    Raises:
        ConfigError, DataError: see `load_examples`, `load_squad` and `load_custom`.
    """
    if settings.task == "custom":
        kind = "regression" if settings.regression else "classification"
        task, examples = load_custom(
            source,
            settings.text_columns,
            str(settings.label_column),
            settings.labels or None,
            kind,
            splits=splits,
            on_damaged=settings.on_damaged,
        )
    else:
        task = named_task(settings.task)
        examples = {split: _load_split(task, settings, source, split, offline=offline) for split in splits}
    for split in splits:
        if split not in examples or examples[split].labels is None:
            raise DataError(
                f"{source}: split {split!r} of task {task.name!r} is absent or has no labels",
                hint="use one that has labels: train and dev always do",
            )
    return task, {split: examples[split] for split in splits}


def _load_split(
    task: GlueTask | SquadTask, settings: TaskSettings, source: str, split: str, *, offline: bool
) -> Examples:
    if isinstance(task, SquadTask):
        return load_squad(task, source, split, on_damaged=settings.on_damaged, offline=offline)
    return load_examples(task, source, split, on_damaged=settings.on_damaged, offline=offline)


def encode_split(examples: Examples, tokenizer: Any, settings: TaskSettings) -> Encoded:
    """Token ids of a split; of questions, `Windows`. The log says how many were too long."""
    if isinstance(examples, Questions):
        encoded, limit = encode_windows(examples, tokenizer, **settings.windowing), "max_query_length"
    else:
        encoded, limit = encode(examples, tokenizer, max_length=settings.max_length), "max_length"
    if encoded.truncated:
        count = f"{encoded.truncated} of {len(examples)}"
        _log.warning("%s: %s are longer than %s and were cut", examples.source, count, limit)
    if isinstance(encoded, Windows) and encoded.out_of_reach:
        count = f"{encoded.out_of_reach} of {len(examples)} questions"
        _log.warning("%s: %s have an answer that no window holds whole", examples.source, count)
    return encoded
