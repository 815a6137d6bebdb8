"""Variants of examples: tokens exchanged for near ones or dropped, pairs swapped. More texts for a teacher to answer.

A small training set says what a teacher answers there, and little of what it answers elsewhere. The idea of exchanging
words for near ones before distillation: TinyBERT, arXiv 1909.10351, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from mlprune_jax.data.encode import Encoded

NEAREST = 15
"""A token is exchanged for one of so many."""
EXCHANGED, DROPPED = 0.3, 0.1
"""The shares of exchanged and of dropped tokens lie, from example to example, evenly between 0 and these."""
SWAPPED = 0.5
"""The share of pairs whose texts change places."""

_CHUNK = 256  # rows of similarities at once: some 120 MB for a whole vocabulary of BERT's


def with_variants(
    encoded: Encoded,
    embeddings: Float32[np.ndarray, "vocab D"],
    copies: int,
    *,
    spared: Collection[int],
    swap: bool = True,
    seed: int,
) -> Encoded:
    """A split's examples, then ``copies`` variants of each.

    Args:
        encoded: the split.
        embeddings: word embeddings, by whose cosine tokens are near each other; of the split's own tokens alone.
        copies: variants of an example.
        spared: ids that are never exchanged, nor exchanged for, nor dropped: see `mlprune_jax.data.encode.form_tokens`.
        swap: whether the texts of pairs may change places; those that token types do not tell apart never do.
        seed: of what becomes of what.

    Returns:
        A split whose labels are all 0: those of an example need not fit its variants. It holds 8 bytes for each token.
    """
    words = _Words.of(encoded, embeddings, spared)
    rng = np.random.default_rng(seed)
    parts = [(encoded.input_ids, encoded.token_type_ids, encoded.lengths)]
    parts += [_variant(encoded, words, rng, swap=swap) for _ in range(copies)]
    ids, types, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    labels = encoded.labels
    return Encoded(
        input_ids=ids,
        token_type_ids=types,
        offsets=np.append(0, np.cumsum(lengths)),
        labels=None if labels is None else np.zeros((len(lengths), *labels.shape[1:]), labels.dtype),
        pad_id=encoded.pad_id,
    )


@dataclass(frozen=True)
class _Words:
    """Which tokens of a split may be exchanged or dropped, and what each may be exchanged for."""

    free: Bool[np.ndarray, " tokens"]
    near: Int32[np.ndarray, "used near"]
    place: Int64[np.ndarray, " tokens"]  # the row of ``near`` of each token, 0 where it is not free

    @classmethod
    def of(cls, encoded: Encoded, embeddings: Float32[np.ndarray, "vocab D"], spared: Collection[int]) -> _Words:
        used = np.setdiff1d(encoded.input_ids, list(spared))
        free = np.isin(encoded.input_ids, used)
        near = used[nearest(embeddings[used], min(NEAREST, len(used) - 1))] if len(used) > 1 else used[:, None]
        place = np.where(free, np.searchsorted(used, encoded.input_ids), 0)
        return cls(free, near, place)


def _variant(
    encoded: Encoded, words: _Words, rng: np.random.Generator, *, swap: bool
) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, " tokens"], Int64[np.ndarray, " examples"]]:
    """One variant of each example: ids and token types, and the examples' lengths."""
    count = len(encoded)
    example = np.repeat(np.arange(count), encoded.lengths)

    def struck(highest: float) -> Bool[np.ndarray, " tokens"]:
        rates = rng.uniform(0, highest, count)
        return words.free & (rng.random(len(example)) < rates[example])

    ids, types = encoded.input_ids.copy(), encoded.token_type_ids
    hit = np.flatnonzero(struck(EXCHANGED))
    ids[hit] = words.near[words.place[hit], rng.integers(words.near.shape[1], size=len(hit))]
    kept = np.flatnonzero(~struck(DROPPED))
    ids, types, example = ids[kept], types[kept], example[kept]
    if swap:
        ids, types = _swap(ids, types, example, rng.random(count) < SWAPPED)
    return ids, types, np.bincount(example, minlength=count)


def _swap(
    ids: Int32[np.ndarray, " tokens"],
    types: Int32[np.ndarray, " tokens"],
    example: Int64[np.ndarray, " tokens"],
    chosen: Bool[np.ndarray, " examples"],
) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, " tokens"]]:
    """The chosen pairs with their second text, and the marker that ends it, before their first."""
    pairs = np.bincount(example, types, minlength=len(chosen)) > 0
    first = np.diff(example, prepend=-1) > 0  # the marker that an example begins with stays there
    moved = (chosen & pairs)[example] & ~first
    later = np.where(moved, 1 - types, types)
    order = np.lexsort((np.where(moved, later, 0), ~first, example))
    return ids[order], later[order]


def nearest(vectors: Float32[np.ndarray, "rows D"], count: int) -> Int64[np.ndarray, "rows count"]:
    """The ``count`` other rows of the greatest cosine to each row, ascending."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = np.empty((len(unit), count), np.int64)
    for start in range(0, len(unit), _CHUNK):
        cosine = unit[start : start + _CHUNK] @ unit.T
        np.fill_diagonal(cosine[:, start:], -np.inf)  # a row is not its own neighbour
        found[start : start + _CHUNK] = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
    return np.sort(found, axis=1)  # the order of argpartition is another on other CPUs
