"""Variants: what is exchanged for what, what is dropped and swapped, and what stays as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlprune_jax.data import variants
from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.variants import DROPPED, EXCHANGED, NEAREST, SWAPPED, nearest, with_variants

FIRST, SEP, PAD = 1, 2, 0
SPARED = (PAD, FIRST, SEP)


def split(texts, labels=None):
    """Examples of one text or two, as a BERT reads them."""
    ids, types = [], []
    for example in texts:
        ids.append([FIRST, *(token for text in example for token in (*text, SEP))])
        types.append([0] + [kind for kind, text in enumerate(example) for _ in range(len(text) + 1)])
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return Encoded(*(np.concatenate(rows).astype(np.int32) for rows in (ids, types)), offsets, labels, PAD)


def random_split(examples, words, vocab, *, pairs=False, seed=0):
    rng = np.random.default_rng(seed)
    return split([[rng.integers(3, vocab, words) for _ in range(1 + pairs)] for _ in range(examples)])


def embeddings(vocab, seed=0):
    return np.random.default_rng(seed).normal(size=(vocab, 5)).astype(np.float32)


def rows(encoded):
    """Ids and token types of each example."""
    at = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    return [(encoded.input_ids[a:b].tolist(), encoded.token_type_ids[a:b].tolist()) for a, b in at]


def only(monkeypatch, **rates):
    """Nothing happens to a text but what is named."""
    for name in ("EXCHANGED", "DROPPED", "SWAPPED"):
        monkeypatch.setattr(variants, name, rates.get(name, 0.0))


text = st.lists(st.integers(3, 40), min_size=0, max_size=9)


@given(st.lists(st.lists(text, min_size=1, max_size=2), min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 99))
def test_the_examples_come_first_and_every_variant_is_a_whole_example_of_their_tokens(texts, copies, seed):
    given_split = split(texts, np.arange(len(texts), dtype=np.int32))
    varied = with_variants(given_split, embeddings(41), copies, spared=SPARED, seed=seed)
    assert len(varied) == len(texts) * (copies + 1)
    assert rows(varied)[: len(texts)] == rows(given_split)
    assert (varied.labels == 0).all()
    assert varied.labels.shape == (len(varied),)
    assert varied.pad_id == PAD
    used = set(given_split.input_ids.tolist())
    for number, (ids, types) in enumerate(rows(varied)):
        example = texts[number % len(texts)]
        assert set(ids) <= used
        assert ids[0] == FIRST
        ends = [place for place, token in enumerate(ids) if token == SEP]
        assert len(ends) == len(example)
        assert ends[-1] == len(ids) - 1
        assert len(ids) <= 1 + sum(len(each) + 1 for each in example)
        assert types == [0] * (ends[0] + 1) + [1] * (len(ids) - ends[0] - 1)


def test_a_token_is_exchanged_for_one_of_its_nearest_in_the_split(monkeypatch):
    only(monkeypatch, EXCHANGED=0.5)
    given_split, words = random_split(60, 12, 90), embeddings(90)
    used = np.setdiff1d(given_split.input_ids, SPARED)
    varied = with_variants(given_split, words, 3, spared=SPARED, seed=0)
    before, *others = varied.input_ids.reshape(4, -1)
    unit = words / np.linalg.norm(words, axis=1, keepdims=True)
    exchanged = set()
    for after in others:
        for one, other in zip(before, after, strict=True):
            if one != other:
                exchanged.add((one, other))
                assert one not in SPARED
                assert other in used
                assert (unit[used[used != one]] @ unit[one] > unit[other] @ unit[one] + 1e-6).sum() < NEAREST
    assert len({other for one, other in exchanged if one == before[1]}) > 1  # not always the same


def test_dropped_tokens_leave_the_others_in_order(monkeypatch):
    only(monkeypatch, DROPPED=0.5)
    given_split = split([[range(3, 40)], [range(3, 20), range(20, 40)]])
    varied = rows(with_variants(given_split, embeddings(40), 8, spared=SPARED, seed=0))
    left = [[token for token in ids if token not in SPARED] for ids, _ in varied]
    assert all(words == sorted(words) for words in left)
    assert sum(len(words) < 37 for words in left[2:]) > 8


def test_pairs_change_places_and_single_texts_stay(monkeypatch):
    only(monkeypatch, SWAPPED=1.0)
    given_split = split([[[5, 6], [7, 8, 9]], [[5, 6]], [[7], [6, 5]]])
    varied = with_variants(given_split, embeddings(10), 1, spared=SPARED, seed=0)
    assert rows(varied)[3:] == rows(split([[[7, 8, 9], [5, 6]], [[5, 6]], [[6, 5], [7]]]))
    unswapped = with_variants(given_split, embeddings(10), 1, spared=SPARED, swap=False, seed=0)
    assert rows(unswapped)[3:] == rows(given_split)


def test_the_shares_of_what_is_changed(monkeypatch):
    given_split, words = random_split(400, 100, 2000, pairs=True), embeddings(2000)
    quarters = np.array([1, 2, 3]) / 4
    only(monkeypatch, EXCHANGED=EXCHANGED)
    before, after = with_variants(given_split, words, 1, spared=SPARED, seed=0).input_ids.reshape(2, 400, -1)
    np.testing.assert_allclose(np.quantile((before != after).mean(1), quarters), EXCHANGED * quarters, atol=0.03)
    only(monkeypatch, DROPPED=DROPPED)
    lengths = with_variants(given_split, words, 1, spared=SPARED, seed=0).lengths.reshape(2, 400)
    np.testing.assert_allclose(np.quantile(1 - lengths[1] / lengths[0], quarters), DROPPED * quarters, atol=0.015)
    only(monkeypatch, SWAPPED=SWAPPED)
    before, after = with_variants(given_split, words, 1, spared=SPARED, seed=0).input_ids.reshape(2, 400, -1)
    assert abs((before != after).any(1).mean() - SWAPPED) < 0.1


def test_variants_differ_from_each_other_and_by_seed_alone():
    given_split, words = random_split(50, 40, 500), embeddings(500)
    first, again, other = (with_variants(given_split, words, 2, spared=SPARED, seed=s) for s in (1, 1, 2))
    assert first.digest() == again.digest()
    assert first.digest() != other.digest()
    assert rows(first)[50:100] != rows(first)[100:]


def test_labels_keep_their_shape_and_lose_their_meaning():
    spans = np.array([[1, 2], [3, 3]], np.int32)
    varied = with_variants(split([[[3, 4]], [[5]]], spans), embeddings(30), 2, spared=SPARED, seed=0)
    np.testing.assert_array_equal(varied.labels, np.zeros((6, 2), np.int32))
    assert with_variants(split([[[3, 4]]]), embeddings(30), 2, spared=SPARED, seed=0).labels is None


@pytest.mark.parametrize("count", [2, 7, 1500])
def test_nearest_are_the_rows_of_greatest_cosine(count):
    vectors = embeddings(count, seed=3)
    vectors[0] = 0  # a token that was never trained
    found = nearest(vectors, min(4, count - 1))
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    for row in range(count):
        assert row not in found[row]
        assert (np.diff(found[row]) > 0).all()  # the same on every CPU
        best = np.sort(np.delete(cosine[row], row))[::-1][: found.shape[1]]
        np.testing.assert_allclose(np.sort(cosine[row, found[row]])[::-1], best, atol=1e-6)
