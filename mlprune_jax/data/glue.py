"""GLUE tasks from a local folder in the published layout, or from the hub."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from mlprune_jax.data import hub
from mlprune_jax.data.tables import OnDamaged, list_folder, name_files, read_table
from mlprune_jax.data.tasks import TEST, Examples, GlueTask, normalized, to_examples
from mlprune_jax.errors import DataError
from mlprune_jax.files import home_path

HUB_DATASET = "nyu-mll/glue"


def load_examples(
    task: GlueTask,
    source: str | os.PathLike[str],
    split: str,
    *,
    on_damaged: OnDamaged = "error",
    offline: bool = False,
) -> Examples:
    """Load one split of a GLUE task.

    A folder that exists is read; what looks like a path never goes to the hub; "hub" or an id "org/name" does.

    Args:
        task: one of `tasks.GLUE`, or a task in the same layout.
        source: the task's own folder, GLUE's folder around it, "hub", or a dataset id on the hub.
        split: "train", "dev" or "test"; MNLI also has "dev_mismatched" and "test_mismatched".
        on_damaged: what becomes of lines with a wrong number of columns: "error" or "skip".
        offline: never touch the network; the cache still serves.

    Returns:
        The texts with their labels; a test split may have none.

    Raises:
        ConfigError: the task has no such split.
        DataError: nothing is found there, or the data is damaged or of another task.
    """
    task.split_names(split)
    folder = home_path(source)
    if os.path.exists(folder):  # unlike its twin in Path, it never raises
        return _from_folder(task, folder, split, on_damaged)
    if source == "hub":
        return _from_hub(task, HUB_DATASET, split, offline)
    if isinstance(source, str) and re.fullmatch(hub.DATASET_ID, source):
        return _from_hub(task, source, split, offline)
    raise DataError(
        f"no folder {str(source)!r} for task {task.name!r}",
        hint=f"pass the folder that holds {task.split_names(split)[0]}, GLUE's folder around it, or 'hub'",
    )


def _from_folder(task: GlueTask, root: Path, split: str, on_damaged: OnDamaged) -> Examples:
    path = _find_file(task, root, task.split_names(split)[0])
    test = split.startswith(TEST)
    columns, optional = _columns(task, test)
    # GLUE's test files do have a header line, also where train and dev have none (CoLA).
    header = None if test else task.header
    return to_examples(read_table(path, columns, optional=optional, header=header, on_damaged=on_damaged), task)


def _from_hub(task: GlueTask, hub_id: str, split: str, offline: bool) -> Examples:
    hub_split = task.split_names(split)[1]
    # A mirror keeps the configurations of the original; a data set of one task has none.
    config = task.hub_config if hub_id.endswith("/glue") else None
    path = hub.download_dataset(hub_id, config, hub_split, offline=offline)
    there = replace(task, text_columns=task.hub_text_columns, label_column="label", labels=task.hub_labels)
    columns, optional = _columns(there, split.startswith(TEST))
    source = ":".join(filter(None, ("hub", hub_id, config, hub_split)))
    table = read_table(path, columns, optional=optional)
    if split.startswith(TEST) and set(table.columns.get("label", ())) <= {"-1", "-1.0"}:
        table.columns.pop("label", None)  # what the hub writes where nobody may see the target
    return to_examples(table, there, source)


def _columns(task: GlueTask, test: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that must be there, and those that may."""
    label = (task.label_column,)
    return (task.text_columns, label) if test else (task.text_columns + label, ())


def _find_file(task: GlueTask, root: Path, name: str) -> Path:
    """The split's file in the folder itself, or in the task's own folder inside it, however that is spelled."""
    inside = [p for p in list_folder(root) if normalized(p.name) == normalized(task.folder) and p.is_dir()]
    for folder in (root, *inside):
        if (folder / name).is_file():
            return folder / name
    looked_in = (inside or [root])[0]
    raise DataError(
        f"{looked_in}: no {name} for task {task.name!r}; it holds {name_files(list_folder(looked_in))}",
        hint=f"put it there, or pass the folder that has {name} or {task.folder}/{name}",
    )
