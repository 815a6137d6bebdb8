"""Variants of examples, with tokens exchanged for near ones: more texts for a teacher to answer.

A small training set says what a teacher answers there, and little of what it answers elsewhere. The idea of exchanging
words for near ones before distillation: TinyBERT, arXiv 1909.10351, section 4.1.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Float32, Int32

from mlprune_jax.data.encode import Encoded

NEAREST = 15
"""A token is exchanged for one of so many."""
HIGHEST_RATE = 0.3
"""An example's share of exchanged tokens lies between 0 and this, evenly."""

_CHUNK = 1024  # rows of similarities at once: some 100 MB for a whole vocabulary


def with_variants(
    encoded: Encoded, embeddings: Float32[np.ndarray, "vocab D"], copies: int, *, spared: Collection[int], seed: int
) -> Encoded:
    """A split's examples, then ``copies`` variants of each, as long as it is and with its label.

    Args:
        encoded: the split.
        embeddings: word embeddings, by whose cosine tokens are near each other; of the split's own tokens alone.
        copies: variants of an example.
        spared: ids that are never exchanged, nor exchanged for: the special tokens.
        seed: of what is exchanged for what.
    """
    used = np.setdiff1d(encoded.input_ids, list(spared))
    if len(used) < 2:
        return encoded
    near = used[nearest(embeddings[used], min(NEAREST, len(used) - 1))]
    rng = np.random.default_rng(seed)
    exchangeable = np.isin(encoded.input_ids, used)
    place = np.searchsorted(used, np.where(exchangeable, encoded.input_ids, used[0]))
    ids = [encoded.input_ids]
    for _ in range(copies):
        rates = rng.uniform(0, HIGHEST_RATE, len(encoded)).repeat(encoded.lengths)
        exchanged = exchangeable & (rng.random(len(rates)) < rates)
        other = near[place, rng.integers(near.shape[1], size=len(place))]
        ids.append(np.where(exchanged, other, encoded.input_ids))
    starts = np.arange(copies + 1)[:, None] * encoded.offsets[-1] + encoded.offsets[:-1]
    return Encoded(
        input_ids=np.concatenate(ids),
        token_type_ids=np.tile(encoded.token_type_ids, copies + 1),
        offsets=np.append(starts, starts[-1, :1] + encoded.offsets[-1]),
        labels=None if encoded.labels is None else np.concatenate([encoded.labels] * (copies + 1)),
        pad_id=encoded.pad_id,
    )


def nearest(vectors: Float32[np.ndarray, "rows D"], count: int) -> Int32[np.ndarray, "rows count"]:
    """The ``count`` other rows of the greatest cosine to each row, in no order."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = np.empty((len(unit), count), np.int32)
    for start in range(0, len(unit), _CHUNK):
        cosine = unit[start : start + _CHUNK] @ unit.T
        np.fill_diagonal(cosine[:, start:], -np.inf)  # a row is not its own neighbour
        found[start : start + _CHUNK] = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
    return found
