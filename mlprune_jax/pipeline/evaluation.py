"""Finished models on data: evaluate and inspect any folder that a run wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.encode import load_tokenizer
from mlprune_jax.data.tasks import Examples, Task
from mlprune_jax.errors import ModelError
from mlprune_jax.files import AnyPath, home_path, read_json
from mlprune_jax.inference.stored import known_task, load_masks, model_folder, stored_kind, stored_task
from mlprune_jax.models.pretrained import load_pretrained
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.pipeline.feasible import check_inputs
from mlprune_jax.pipeline.given import load_model
from mlprune_jax.pipeline.scoring import evaluate_split
from mlprune_jax.pipeline.source import encode_split, load_splits
from mlprune_jax.pipeline.summary import describe_model
from mlprune_jax.training.comparison import Outcomes, compare
from mlprune_jax.training.mesh import Layout


def evaluate_folder(
    path: AnyPath,
    *,
    against: AnyPath | None = None,
    data: str | None = None,
    split: str = "dev",
    skip_damaged: bool = False,
    batch_size: int = 64,
    offline: bool = False,
) -> dict[str, Any]:
    """Metrics of a finished model, dense or pruned, on any folder of its task.

    Args:
        path: a finished run, or a model folder that a run wrote.
        against: another to compare it with on the same examples, or a fine-tuned model of other software, whose texts
            are then cut as the first one's.
        data: where the data lies; unset: where the run's own lay.
        split: "train", "dev", or another split that has labels.
        skip_damaged: leave damaged lines out and count them, as runs do with ``on_damaged: skip``.
        batch_size: examples per forward.
        offline: never ask the hub.

    Returns:
        ``{"model", "task", "data", "split", metric: value, ..., "loss", "examples"}``; with ``against`` also the
        other's under that name, with what `mlprune_jax.training.comparison.compare` tells.

    Raises:
        DataError, ModelError: nothing there, a model without a task or a trained head, or two of other tasks.
        ConfigError: a model that cannot read texts as long as the settings say.
        NumericalError: logits that are not finite.
    """
    path = home_path(path)
    folder = model_folder(path)
    settings = known_task(folder)
    other = None if against is None else model_folder(against)
    other_settings = settings if other is None else _same_task(settings, folder, other)
    if skip_damaged:
        settings = settings.model_copy(update={"on_damaged": "skip"})
    source = data or _own_data(path)
    task, examples = load_splits(settings, source, (split,), offline=offline)
    answer = _reader(folder, task, settings)
    other_answer = None if other is None else _reader(other, task, other_settings)  # refused before the first answers
    ours = answer(examples[split], batch_size)
    told = {"model": str(folder), "task": task.name, "data": source, "split": split, **ours.metrics}
    if other_answer is None:
        return told
    theirs = other_answer(examples[split], batch_size)
    return told | {"against": {"model": str(other), **theirs.metrics, **compare(ours, theirs)}}


def inspect_folder(path: AnyPath) -> dict[str, Any]:
    """What a model keeps: densities by count and, per layer, heads, rows and blocks; of a run also its metrics."""
    path = home_path(path)
    folder = model_folder(path)
    loaded = load_pretrained(folder, num_labels=None, kind=stored_kind(folder))
    description = {"model": str(folder), **describe_model(loaded.config, load_masks(folder))}
    summary = path / "summary.json"
    if summary.is_file():
        stored = read_json(summary)
        description |= {key: stored[key] for key in ("task", "metric", "target_density", "stages")}
        description["final"] = {k: v for k, v in stored["final"].items() if k not in description}
    return description


def _same_task(settings: TaskSettings, folder: Path, other: Path) -> TaskSettings:
    """How ``other`` reads the data that ``folder`` reads by ``settings``, which it takes where it tells nothing."""
    found = stored_task(other)
    if found is None:
        return settings
    for name in ("task", "text_columns", "label_column", "regression"):
        own, its = getattr(settings, name), getattr(found, name)
        if own != its:
            raise ModelError(
                f"{folder} and {other} cannot be compared: their {name} is {own!r} and {its!r}",
                hint="compare models of one task",
            )
    return found


def _reader(folder: Path, task: Task, settings: TaskSettings) -> Callable[[Examples, int], Outcomes]:
    """``(examples, batch size) -> `` what a folder's model says of each."""
    model, fresh_head = load_model(folder, task, task.num_labels, seed=0)
    if fresh_head:
        raise ModelError(f"{folder} has no trained head: there is nothing to evaluate", hint="fine-tune it first")
    tokenizer = load_tokenizer(folder)
    check_inputs(settings, task, {str(folder): model.config}, tokenizer)

    def answer(examples: Examples, batch_size: int) -> Outcomes:
        return evaluate_split(
            TaskModel(model.config, task.kind, task.num_labels),
            model.params,
            encode_split(examples, tokenizer, settings),
            task,
            settings,
            batch_size=batch_size,
            layout=Layout(devices=jax.local_devices()[:1]),
        )

    return answer


def _own_data(path: Path) -> str:
    """The data of the run that ``path`` is."""
    from mlprune_jax.config.loading import load_config
    from mlprune_jax.config.settings import RunConfig

    resolved = path / "config.resolved.yaml"
    if not resolved.is_file():
        raise ModelError(f"{path} is no run, so it has no data of its own", hint="name it with --data")
    config = load_config(RunConfig, resolved)
    return str(path / "demo") if config.model == "demo" else config.data
