"""What a finished model's folder says of itself: where it lies in a run, its task, its tile masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.errors import DataError, IntegrityError, ModelError
from mlprune_jax.files import AnyPath, home_path
from mlprune_jax.manifest import MANIFEST, check_manifest
from mlprune_jax.models.hf_config import architectures, read_config
from mlprune_jax.models.model_folder import MASKS, check_folder
from mlprune_jax.models.names import HEADS, Kind
from mlprune_jax.models.safetensors_io import open_weights, write_tensors


def model_folder(path: AnyPath) -> Path:
    """The model in ``path``, whose ``~`` is a home: a run's final model, or the folder itself.

    Raises:
        DataError: a run that has not finished, or no folder at all.
        IntegrityError: files that are not what a run wrote.
    """
    path = home_path(path)
    if not os.path.exists(path):  # Path.exists raises where the name is too long
        raise DataError(f"no folder {str(path)!r}", hint="pass a run's folder or a model's folder")
    if (path / "run.json").is_file():
        if not (path / "summary.json").is_file():
            raise DataError(f"the run in {path} has not finished", hint=f"finish it with `mlprune resume {path}`")
        again = f"take the files of a copy, or let `mlprune resume {path}` write them again"
        path = path / "final"
        check_manifest(path, hint=again)  # which a finished run always has
    elif (path / MANIFEST).is_file():
        check_manifest(path, hint=f"take the files of a copy; if you changed them yourself, remove {MANIFEST}")
    return path


def stored_task(folder: Path) -> TaskSettings | None:
    """The task that a model folder was trained for; ``None`` where no run of ours wrote it.

    Raises:
        ModelError: the folder holds no model.
        IntegrityError: what it says is no task.
    """
    check_folder(folder)
    stored = read_config(folder).raw.get("mlprune")
    if not isinstance(stored, dict) or "task" not in stored:
        return None
    try:
        return TaskSettings.model_validate(stored["task"])
    except ValidationError as error:
        raise IntegrityError(
            f"{folder / 'config.json'}: mlprune.task is damaged: {error.errors()[0]['msg']}",
            hint="take the file of the original folder",
        ) from error


def known_task(folder: Path) -> TaskSettings:
    """The task that a model folder was trained for.

    Raises:
        ModelError: the folder does not say; otherwise as `stored_task`.
    """
    task = stored_task(folder)
    if task is None:
        raise ModelError(
            f"{folder} does not say which task it is for: no run of mlprune wrote it",
            hint="fine-tune it with `mlprune prune`, which stores the task with the model",
        )
    return task


def stored_kind(folder: Path) -> Kind:
    """The kind of a model folder's head; one output without a ``problem_type`` is a regression, as in transformers.

    Raises:
        ModelError: no model, or a head for several labels at once, or for one.
    """
    check_folder(folder)
    _, config, family = read_config(folder)
    if any(name.endswith("ForQuestionAnswering") for name in architectures(config)):
        return "span"
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        raise ModelError(f"{folder} gives several labels at once, which is not supported")
    weights = {family.bert_name(name): stored for name, stored in open_weights(folder).items()}
    head = weights.get(f"{HEADS['classification']}.weight")
    one = head is not None and head.shape[:1] == (1,)
    if problem == "regression" or (problem is None and one):
        return "regression"
    if one:
        raise ModelError(
            f"{folder} has one output by its weights, and with problem_type {problem!r} one label for all texts",
            hint='write "problem_type": "regression" into config.json if the output is a number',
        )
    return "classification"


def save_masks(folder: Path, masks: dict[str, Any]) -> None:
    """Write bool masks by parameter path."""
    write_tensors(folder / MASKS, {"/".join(k): np.asarray(v, bool) for k, v in flatten_dict(masks).items()})


def load_masks(folder: Path) -> dict[str, Any] | None:
    """Masks of a folder as `save_masks` wrote them, ``None`` where there are none.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = folder / MASKS
    if not path.is_file():
        return None
    try:
        return unflatten_dict({tuple(k.split("/")): v for k, v in load_file(path).items()})
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="take the file of the original folder") from error
