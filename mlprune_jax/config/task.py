"""What a model must know of its task, as written in a config file and beside every model that a run writes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mlprune_jax.config.geometry import Frozen, Integer, Real
from mlprune_jax.config.values import Count


class TaskSettings(Frozen):
    """What a model must know of its task to read data: stored with every model that a run writes.

    Attributes:
        task: a GLUE task, "squad", "squad2", "demo", or "custom" with ``text_columns`` and ``label_column``.
        text_columns: of a custom task, the names of its one or two columns of text.
        label_column: of a custom task, the name of the column with the class or number.
        labels: of a custom task, class names in id order; empty: found in the training split.
        regression: of a custom task, whether labels are numbers.
        on_damaged: "error" stops at a damaged line or question; "skip" leaves it out and says how many were.
        max_length: longest input in tokens; 384 for "squad" and "squad2".
        length_buckets: padded lengths in tokens; each compiles once; ``max_length`` is always one of them. 128, 256 and
            384 for "squad" and "squad2".
        doc_stride: SQuAD: tokens that two windows in a row of a long context share.
        max_query_length: SQuAD: tokens a question has at most; longer ones lose their end.
        n_best: SQuAD: candidates that are kept of each question; an answer's score is its probability among them.
        max_answer_length: SQuAD: tokens an answer has at most.
        null_threshold: "squad2": no answer is given where its score is more than this above the best answer's.
    """

    task: str
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    labels: tuple[str, ...] = ()
    regression: bool = False
    on_damaged: Literal["error", "skip"] = "error"
    max_length: Annotated[Integer, Field(ge=8)] = 128
    length_buckets: tuple[Count, ...] = (32, 64, 128)
    doc_stride: Annotated[Integer, Field(ge=0)] = 128
    max_query_length: Count = 64
    n_best: Count = 20
    max_answer_length: Count = 30
    null_threshold: Real = 0.0

    @model_validator(mode="before")
    @classmethod
    def _longer_for_spans(cls, data: Any) -> Any:
        """A paragraph and a question need more room than a sentence."""
        if isinstance(data, dict) and _plain(data.get("task")) in ("squad", "squad2"):
            return {"max_length": 384, "length_buckets": (128, 256, 384), **data}
        return data

    @model_validator(mode="after")
    def _columns_named(self) -> TaskSettings:
        if self.task == "custom" and not (self.text_columns and self.label_column):
            raise ValueError("task custom needs text_columns (one or two) and label_column: text_columns=[text]")
        of_custom = ("text_columns", "label_column", "labels", "regression")
        given = [name for name in of_custom if getattr(self, name)]
        if self.task != "custom" and given:
            raise ValueError(
                f"task {self.task} has columns and labels of its own: {', '.join(given)} is for task custom"
            )
        if len(self.text_columns) > 2:
            raise ValueError(f"text_columns takes one or two names, got {len(self.text_columns)}")
        return self

    @property
    def buckets(self) -> tuple[int, ...]:
        """Padded lengths, ascending, ``max_length`` the last."""
        return (*sorted({b for b in self.length_buckets if b < self.max_length}), self.max_length)

    @property
    def windowing(self) -> dict[str, int]:
        """How contexts are cut into windows, as `mlprune_jax.data.windows.encode_windows` takes it."""
        return {name: getattr(self, name) for name in ("max_length", "doc_stride", "max_query_length")}

    @property
    def answering(self) -> dict[str, Any]:
        """How answers are chosen, as `mlprune_jax.data.answers.Answers` takes it."""
        threshold = self.null_threshold if _plain(self.task) == "squad2" else None
        return {"n_best": self.n_best, "max_answer_length": self.max_answer_length, "null_threshold": threshold}


def _plain(name: Any) -> str:
    """A task's name without case and punctuation, as `mlprune_jax.data.tasks.normalized`."""
    return "".join(c for c in str(name).lower() if c.isalnum())
