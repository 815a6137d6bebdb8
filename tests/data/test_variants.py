"""Variants: what is exchanged for what, and what stays as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.variants import HIGHEST_RATE, NEAREST, nearest, with_variants

SPARED = (0, 1, 2)
PAD = 0


def split(lengths, seed, vocab, labels=None):
    """Random ids of ``vocab``, each example between the markers 1 and 2."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = np.random.default_rng(seed).integers(0, vocab, offsets[-1]).astype(np.int32)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 1, 2
    types = (np.arange(offsets[-1]) % 2).astype(np.int32)
    return Encoded(ids, types, offsets, labels, PAD)


def embeddings(vocab, seed=0):
    return np.random.default_rng(seed).normal(size=(vocab, 5)).astype(np.float32)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=12), st.integers(0, 3), st.integers(0, 99), st.integers(3, 60))
def test_variants_are_the_examples_but_for_tokens_exchanged_for_near_ones(lengths, copies, seed, vocab):
    labels = np.arange(len(lengths), dtype=np.int32)
    given_split, words = split(lengths, seed, vocab, labels), embeddings(vocab)
    varied = with_variants(given_split, words, copies, spared=SPARED, seed=seed)
    used = np.setdiff1d(given_split.input_ids, SPARED)
    if len(used) < 2:  # nothing to exchange a token for
        copies = 0
    assert varied.pad_id == PAD
    np.testing.assert_array_equal(varied.lengths, np.tile(lengths, copies + 1))
    np.testing.assert_array_equal(varied.token_type_ids, np.tile(given_split.token_type_ids, copies + 1))
    np.testing.assert_array_equal(varied.labels, np.tile(labels, copies + 1))
    rows = varied.input_ids.reshape(copies + 1, -1)
    np.testing.assert_array_equal(rows[0], given_split.input_ids)
    unit = words / np.linalg.norm(words, axis=1, keepdims=True)
    for before, after in zip(np.tile(rows[0], copies), rows[1:].ravel(), strict=True):
        if before == after:
            continue
        assert before not in SPARED
        others = used[used != before]
        nearer = (unit[others] @ unit[before] > unit[after] @ unit[before] + 1e-6).sum()
        assert after in others
        assert nearer < NEAREST


def test_variants_differ_from_each_other_and_by_seed_alone():
    given_split, words = split([40] * 50, 0, 500), embeddings(500)
    first, again, other = (with_variants(given_split, words, 2, spared=SPARED, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    assert (first.input_ids != other.input_ids).any()
    _, one, two = first.input_ids.reshape(3, -1)
    assert (one != two).any()
    assert first.digest() != given_split.digest()


def test_the_share_of_exchanged_tokens_is_spread_evenly_up_to_the_highest_rate():
    given_split = split([200] * 400, 0, 2000)
    varied = with_variants(given_split, embeddings(2000), 1, spared=SPARED, seed=0)
    before, after = varied.input_ids.reshape(2, 400, 200)
    shares = (before != after).mean(axis=1)
    assert shares.max() < HIGHEST_RATE + 0.12
    np.testing.assert_allclose(
        np.quantile(shares, [0.25, 0.5, 0.75]), HIGHEST_RATE * np.array([1, 2, 3]) / 4, atol=0.03
    )


def test_spans_and_splits_without_labels_keep_theirs():
    spans = np.array([[1, 2], [0, 0]], np.int32)
    assert with_variants(split([4, 3], 0, 30, spans), embeddings(30), 2, spared=SPARED, seed=0).labels.shape == (6, 2)
    assert with_variants(split([4, 3], 0, 30), embeddings(30), 2, spared=SPARED, seed=0).labels is None


@pytest.mark.parametrize("rows", [2, 7, 1500])
def test_nearest_are_the_rows_of_greatest_cosine(rows):
    vectors = embeddings(rows, seed=3)
    vectors[0] = 0  # a token that was never trained
    count = min(4, rows - 1)
    found = nearest(vectors, count)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    for row in range(rows):
        assert row not in found[row]
        best = np.sort(np.delete(cosine[row], row))[::-1][:count]
        np.testing.assert_allclose(np.sort(cosine[row, found[row]])[::-1], best, atol=1e-6)
