"""A teacher's logits for a whole split, asked once instead of in every step that draws an example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mlprune_jax.data.batches import token_places
from mlprune_jax.data.encode import Encoded
from mlprune_jax.errors import Preempted
from mlprune_jax.training.metrics import forward_batches

TEACHER_LOGITS = "teacher_logits"
"""The name of the column of a training batch that holds them."""

PART = 4096
"""Examples that are answered before their answers are kept: what a stop can cost."""

Column = Callable[[np.ndarray, int], np.ndarray]


def in_parts(encoded: Encoded) -> Iterator[Encoded]:
    """A split's examples in their order, `PART` at a time."""
    for start in range(0, len(encoded), PART):
        offsets = encoded.offsets[start : start + PART + 1]
        tokens = slice(offsets[0], offsets[-1])
        labels = None if encoded.labels is None else encoded.labels[start : start + PART]
        ids, types = encoded.input_ids[tokens], encoded.token_type_ids[tokens]
        yield Encoded(ids, types, offsets - offsets[0], labels, encoded.pad_id)


def ask_teacher(
    forward: Any,
    params: Any,
    encoded: Encoded,
    batches: Iterable[dict[str, Any]],
    stopping: Callable[[], bool] = bool,
) -> np.ndarray:
    """What a teacher answers to every example of a split.

    Args:
        forward: see `mlprune_jax.training.metrics.make_forward`.
        params: the teacher's parameters.
        encoded: the split, with labels.
        batches: of it, from `mlprune_jax.data.batches.eval_batches`.
        stopping: whether the process was asked to stop.

    Returns:
        Logits, float32: [examples, num_labels], or [tokens of the split, 2] for spans.

    Raises:
        Preempted: stopped between two batches; nothing of these answers is saved.
        NumericalError: logits that are not finite.
    """
    answered = forward_batches(forward, params, _until_stopped(batches, stopping))
    found = [(batch["index"], logits) for batch, logits, _ in answered]
    if found[0][1].ndim == 2:
        of_examples = np.empty((len(encoded), found[0][1].shape[1]), np.float32)
        for rows, logits in found:
            of_examples[rows] = logits
        return of_examples
    of_tokens = np.empty((len(encoded.input_ids), 2), np.float32)
    for rows, logits in found:
        at, real = token_places(encoded, rows, logits.shape[1])
        of_tokens[at[real]] = logits[real]
    return of_tokens


def answer_column(encoded: Encoded, answers: np.ndarray, *, per_token: bool) -> Column:
    """What `ask_teacher` found, as a column of training batches.

    Args:
        encoded: the split that was asked about.
        answers: see `ask_teacher`.
        per_token: whether they are of tokens, as for spans.

    Returns:
        ``(rows, length) -> logits``: of the examples ``rows``, float32 [rows, num_labels], or [rows, length, 2] for
        spans, 0 where an example has no token.
    """
    if not per_token:
        return lambda rows, _: answers[rows]

    def column(rows: np.ndarray, length: int) -> np.ndarray:
        at, real = token_places(encoded, rows, length)
        return np.where(real[..., None], answers[at], np.float32(0))

    return column


def _until_stopped(batches: Iterable[dict[str, Any]], stopping: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        if stopping():
            raise Preempted("stopped while a teacher answered, as asked", hint="go on with `mlprune resume`")
        yield batch
