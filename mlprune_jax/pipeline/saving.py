"""What a run writes of a model: a folder that runs from itself alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlprune_jax.config.settings import RunConfig
from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.tasks import Task
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.pretrained import save_pretrained
from mlprune_jax.models.tokenizer_files import copy_tokenizer
from mlprune_jax.pipeline.context import Model
from mlprune_jax.pipeline.summary import describe_model
from mlprune_jax.pruning.granularity import format_block


def save_model(
    path: Path, model: Model, masks: dict[str, Any] | None, *, config: RunConfig, task: Task, base: Path
) -> None:
    """Write weights, tokenizer, task, and what was kept.

    Args:
        path: the folder, made.
        model: a dense or shrunk model.
        masks: its tile masks, or ``None``.
        config: the run's settings.
        task: resolved, with the labels that were found.
        base: the folder whose tokenizer it uses.
    """
    settings = {name: getattr(config, name) for name in TaskSettings.model_fields}
    if config.task == "custom":
        settings["labels"] = task.labels
    pruning = None
    if model.config.layers or masks is not None:
        pruning = describe_model(model.config, masks)
        pruning["block_shape"] = format_block(config.prune.blocks.shape) if masks is not None else None
        pruning["kept"] = pruning.pop("layers")
    save_pretrained(
        path,
        model.config,
        jax.tree.map(np.asarray, model.params),
        kind=task.kind,
        labels=task.labels or None,
        extra_config={"mlprune": {"task": TaskSettings(**settings).model_dump(mode="json")}},
        pruning=pruning,
    )
    copy_tokenizer(base, path)
    if masks is not None:
        save_masks(path, masks)
