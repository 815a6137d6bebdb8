"""The user's own task: any tsv, csv or jsonl files with named columns."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mlprune_jax.data.tables import READERS, OnDamaged, Table, list_folder, name_files, read_table
from mlprune_jax.data.tasks import TEST, Examples, Task, TaskKind, to_examples
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.files import home_path

_STEMS = {"train": ("train",), "dev": ("dev", "validation"), TEST: (TEST,)}
_METRICS = {"classification": ("accuracy",), "regression": ("pearson", "spearman")}


def load_custom(
    source: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    text_columns: str | Sequence[str],
    label_column: str,
    labels: Sequence[str] | None = None,
    kind: TaskKind = "classification",
    *,
    name: str = "custom",
    metrics: Sequence[str] | None = None,
    splits: Collection[str] | None = None,
    on_damaged: OnDamaged = "error",
) -> tuple[Task, dict[str, Examples]]:
    """Read a task from files with named columns.

    Labels that are not given are those of the train split, sorted (as numbers where all are whole numbers); the other
    splits must use the same ones.

    Args:
        source: a folder with ``train.*`` and ``dev.*`` (or ``validation.*``; ``test.*`` where there is one), each tsv,
            csv or jsonl; or split -> file.
        text_columns: one column name, or two for pairs.
        label_column: name of the label's column; a test split may lack it.
        labels: class names in the order of their ids.
        kind: "classification" or "regression".
        name: the task's name in reports.
        metrics: names of the scores, the primary one first; accuracy, or pearson and spearman, where None.
        splits: those to read, of what is there; all where None. The train split is read as well where the labels are
            found in it.
        on_damaged: what becomes of lines with a wrong number of columns: "error" or "skip".

    Returns:
        The task, and its examples by split.

    Raises:
        ConfigError: the columns, labels and kind do not make a task.
        DataError: a file is missing or damaged, or a label is not one of the task's.
    """
    if kind not in _METRICS:
        raise ConfigError(f"custom tasks cannot be of kind {kind!r}", hint=f"use one of {', '.join(_METRICS)}")
    texts = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
    if isinstance(source, Mapping):
        files = {split: Path(path) for split, path in source.items()}
    else:
        files = _find_files(home_path(source))
    find_labels = kind == "classification" and labels is None
    if splits is not None:
        files = {s: path for s, path in files.items() if s in splits or (find_labels and s == "train")}
    tables = {
        split: read_table(
            path,
            texts if split.startswith(TEST) else (*texts, label_column),
            optional=(label_column,),
            on_damaged=on_damaged,
        )
        for split, path in files.items()
    }
    if find_labels:
        labels = _infer_labels(tables.get("train"), label_column)
    task = Task(
        name=name,
        kind=kind,
        labels=tuple(labels or ()),
        text_columns=texts,
        label_column=label_column,
        metrics=tuple(metrics or _METRICS[kind]),
    )
    return task, {split: to_examples(table, task) for split, table in tables.items()}


def _find_files(folder: Path) -> dict[str, Path]:
    held = list_folder(folder)
    files: dict[str, Path] = {}
    for split, stems in _STEMS.items():
        found = [path for path in held if path.stem in stems and path.suffix.lower() in READERS]
        if len(found) > 1:
            raise DataError(f"{folder}: several files for {split}: {name_files(found)}", hint="keep one of them")
        if found:
            files[split] = found[0]
        elif split != TEST:
            wanted = " or ".join(f"{stem}.*" for stem in stems)
            raise DataError(
                f"{folder}: no {wanted}; it holds {name_files(held)}", hint=f"the endings are {', '.join(READERS)}"
            )
    return files


def _infer_labels(train: Table | None, column: str) -> list[str]:
    if train is None:
        raise ConfigError("labels can only be found in a train split", hint="name them with labels=...")
    for line, label in zip(train.lines, train.columns[column], strict=True):
        if label != label.strip() or not label:
            raise DataError(
                f"{train.path}, line {line}: label {label!r} is "
                + ("padded with blanks" if label.strip() else "blank"),
                hint="mend it, or list all class names in labels, this one included",
            )
    labels = sorted(set(train.columns[column]))
    if len(labels) < 2:
        raise DataError(f"{train.path}: column {column!r} holds one label only: {labels}", hint="name another column")
    if len(labels) == len(train) > 2:
        raise DataError(
            f"{train.path}: column {column!r} holds a different label in each of its {len(train)} rows",
            hint="name another column, or set the kind to 'regression'",
        )
    if all(re.fullmatch(r"[+-]?\d{1,18}", label) for label in labels):
        return sorted(labels, key=int)
    if all(re.fullmatch(r"[+-]?\d*\.?\d+", label) for label in labels):
        raise DataError(
            f"{train.path}: column {column!r} holds numbers with fractions: {', '.join(labels)[:100]}",
            hint="set regression (the kind 'regression' in Python), or name all classes in labels",
        )
    return labels
