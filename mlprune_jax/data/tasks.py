"""What a task is, what its examples are, and the nine GLUE tasks as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mlprune_jax.data.tables import Table
from mlprune_jax.errors import ConfigError, DataError

TaskKind = Literal["classification", "regression", "span"]

TEST = "test"  # a split of this name, or starting so ("test_mismatched"), may come without labels

_FINITE = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))

_SPLITS = {"train": ("train.tsv", "train"), "dev": ("dev.tsv", "validation"), TEST: ("test.tsv", "test")}
_MNLI_SPLITS = {
    "train": ("train.tsv", "train"),
    "dev": ("dev_matched.tsv", "validation_matched"),
    "dev_mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
    TEST: ("test_matched.tsv", "test_matched"),
    "test_mismatched": ("test_mismatched.tsv", "test_mismatched"),
}


@dataclass(frozen=True)
class Task:
    """What is predicted from which columns, and how that is scored.

    Attributes:
        name: short lower-case name.
        kind: "classification", "regression" or "span".
        labels: class names in the order of their ids; empty unless the kind is "classification".
        text_columns: one column, or two for a pair.
        label_column: the column of the label.
        metrics: names of the scores; the first is the primary one.
        target_range: least and greatest target of a regression.
        symmetric: whether the texts of a pair may change places.

    Raises:
        ConfigError: where the parts do not fit together.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str
    metrics: tuple[str, ...]
    target_range: tuple[float, float] = field(default=_FINITE, kw_only=True)
    symmetric: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= len(self.text_columns) <= 2 or len(set(self.text_columns)) != len(self.text_columns):
            raise ConfigError(f"task {self.name!r}: one text column or two are needed, got {self.text_columns}")
        if self.kind != "span" and self.label_column in self.text_columns:
            raise ConfigError(f"task {self.name!r}: column {self.label_column!r} is both text and label")
        if (self.kind == "classification") != (len(self.labels) > 1) or len(set(self.labels)) != len(self.labels):
            raise ConfigError(
                f"task {self.name!r}: kind {self.kind!r} with labels {self.labels}",
                hint="a classification has two or more different labels, other kinds have none",
            )
        if not self.metrics:
            raise ConfigError(f"task {self.name!r}: no metric", hint="name at least one")

    @property
    def num_labels(self) -> int:
        """Outputs of a model for it: one for each class, one number, or the start and the end of an answer."""
        return len(self.labels) or (1 if self.kind == "regression" else 2)

    @property
    def label_spellings(self) -> tuple[tuple[str, ...], ...]:
        """The class names in the order of their ids, once for each way in which they are written."""
        return (self.labels,)


@dataclass(frozen=True)
class GlueTask(Task):
    """A task in GLUE's published layout: where its splits lie in a folder and on the hub.

    `Task.text_columns`, `Task.label_column` and `Task.labels` speak of the folder's files.

    Attributes:
        folder: the task's own folder inside GLUE's.
        hub_config: its configuration in ``nyu-mll/glue``.
        hub_text_columns: the same texts there; the label column is "label".
        hub_labels: the same labels there, in the same order.
        header: columns of train and dev where these have no header line.
        splits: split -> (file name, name on the hub).
    """

    folder: str
    hub_config: str
    hub_text_columns: tuple[str, ...]
    hub_labels: tuple[str, ...]
    header: tuple[str, ...] | None = None
    splits: Mapping[str, tuple[str, str]] = field(default_factory=lambda: _SPLITS)

    @property
    def label_spellings(self) -> tuple[tuple[str, ...], ...]:
        return (self.labels, self.hub_labels)

    def split_names(self, split: str) -> tuple[str, str]:
        """The split's file name and its name on the hub.

        Raises:
            ConfigError: the task has no such split.
        """
        if split not in self.splits:
            raise ConfigError(f"task {self.name!r} has no split {split!r}", hint=f"use one of {', '.join(self.splits)}")
        return self.splits[split]


@dataclass(frozen=True)
class Examples:
    """The texts and labels of one split.

    Attributes:
        texts: one list of texts, or two of equal length for pairs.
        labels: int32 class ids or float32 targets, [examples], or int32 spans, [examples, 2]; None where the split has
            none.
        source: where they come from, for reports.
        skipped: damaged ones that were left out.

    Raises:
        DataError: the lengths differ.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray | None
    source: str
    skipped: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        lengths = [len(column) for column in self.texts] + ([] if self.labels is None else [len(self.labels)])
        if len(set(lengths)) != 1:
            raise DataError(f"{self.source}: columns of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.texts[0])


def normalized(name: str) -> str:
    """A task's or folder's name without case and punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())


def to_examples(table: Table, task: Task, source: str | None = None) -> Examples:
    """Turn a table's columns into the task's examples, labels into ids or targets.

    Args:
        table: holds the task's text columns, and its label column unless the split has no labels.
        task: a classification or regression.
        source: how reports name the origin; the table's path where None.

    Raises:
        DataError: a label is not one of the task's.
    """
    cells = table.columns.get(task.label_column)
    labels = None if cells is None else _labels(cells, table, task)
    texts = tuple(table.columns[name] for name in task.text_columns)
    return Examples(texts, labels, source or str(table.path), skipped=table.skipped)


def _labels(cells: Sequence[str], table: Table, task: Task) -> np.ndarray:
    ids = {label: i for i, label in enumerate(task.labels)}
    regression = task.kind == "regression"
    values = [_number(cell, task.target_range) if regression else ids.get(cell) for cell in cells]
    for row, value in enumerate(values):
        if value is None:
            wanted = _wanted_number(task) if regression else f"one of {', '.join(task.labels)[:300]}"
            raise DataError(
                f"{table.path}, line {table.lines[row]}: column {task.label_column!r} holds {cells[row]!r}, "
                f"wanted {wanted} (task {task.name!r})",
                hint="repair the label, or choose the task this file belongs to; a custom task may name it in `labels`",
            )
    return np.array(values, np.float32 if regression else np.int32)


def _number(cell: str, target_range: tuple[float, float]) -> float | None:
    try:
        value = float(cell) if "_" not in cell else math.nan  # Python reads "1_0" as 10
    except ValueError:
        return None
    return value if target_range[0] <= value <= target_range[1] else None  # a comparison with NaN is false


def _wanted_number(task: Task) -> str:
    least, greatest = task.target_range
    return "a finite number" if task.target_range == _FINITE else f"a number from {least:g} to {greatest:g}"


def _glue(
    folder: str,
    text_columns: tuple[str, ...],
    label_column: str,
    metrics: tuple[str, ...],
    hub_labels: tuple[str, ...],
    *,
    labels: tuple[str, ...] = ("0", "1"),
    hub_text_columns: tuple[str, ...] | None = None,
    header: tuple[str, ...] | None = None,
    splits: Mapping[str, tuple[str, str]] = _SPLITS,
    target_range: tuple[float, float] = _FINITE,
    symmetric: bool = False,
) -> GlueTask:
    return GlueTask(
        name=normalized(folder),
        kind="classification" if hub_labels else "regression",
        labels=labels if hub_labels else (),
        text_columns=text_columns,
        label_column=label_column,
        metrics=metrics,
        folder=folder,
        hub_config=normalized(folder),
        hub_text_columns=hub_text_columns or text_columns,
        hub_labels=hub_labels,
        header=header,
        splits=splits,
        target_range=target_range,
        symmetric=symmetric,
    )


_PAIR = ("sentence1", "sentence2")
_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")
_NLI = ("entailment", "neutral", "contradiction")
_NLI2 = ("entailment", "not_entailment")
_COLA = ("source", "label", "annotation", "sentence")
_MRPC = ("#1 String", "#2 String")

GLUE: dict[str, GlueTask] = {
    task.name: task
    for task in (
        _glue("CoLA", ("sentence",), "label", ("mcc",), ("unacceptable", "acceptable"), header=_COLA),
        _glue("SST-2", ("sentence",), "label", _ACCURACY, ("negative", "positive")),
        _glue(
            "MRPC",
            _MRPC,
            "Quality",
            _ACCURACY_F1,
            ("not_equivalent", "equivalent"),
            hub_text_columns=_PAIR,
            symmetric=True,
        ),
        _glue("STS-B", _PAIR, "score", ("pearson", "spearman"), (), target_range=(0.0, 5.0), symmetric=True),
        _glue(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            _ACCURACY_F1,
            ("not_duplicate", "duplicate"),
            symmetric=True,
        ),
        _glue(
            "MNLI",
            _PAIR,
            "gold_label",
            _ACCURACY,
            _NLI,
            labels=_NLI,
            hub_text_columns=("premise", "hypothesis"),
            splits=_MNLI_SPLITS,
        ),
        _glue("QNLI", ("question", "sentence"), "label", _ACCURACY, _NLI2, labels=_NLI2),
        _glue("RTE", _PAIR, "label", _ACCURACY, _NLI2, labels=_NLI2),
        _glue("WNLI", _PAIR, "label", _ACCURACY, ("not_entailment", "entailment")),
    )
}
