"""Batches: what is drawn, how often, and that nothing but (seed, step) decides it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlprune_jax.data.batches import Batches, eval_batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.errors import ConfigError, DataError

BUCKETS = (4, 8, 16)
PAD = 99


def encoded(lengths, labelled=True):
    """Example ``i`` holds the number ``i + 100`` in all its tokens, and 1 as the type of its last."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    types = np.zeros(offsets[-1], np.int32)
    types[offsets[1:] - 1] = 1
    labels = np.arange(len(lengths), dtype=np.int32) if labelled else None
    return Encoded(np.repeat(np.arange(len(lengths), dtype=np.int32) + 100, lengths), types, offsets, labels, PAD)


many_lengths = st.lists(st.integers(1, 16), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)


def check_rows(batch, lengths, rows):
    """Every row is its example, padded to a bucket that its longest example needs."""
    assert batch["input_ids"].shape[1] in BUCKETS
    for i, row in enumerate(rows):
        real = np.arange(batch["input_ids"].shape[1]) < lengths[row]
        np.testing.assert_array_equal(batch["attention_mask"][i], real)
        np.testing.assert_array_equal(batch["input_ids"][i], np.where(real, row + 100, PAD))
        np.testing.assert_array_equal(np.flatnonzero(batch["token_type_ids"][i]), [lengths[row] - 1])


@given(many_lengths, st.integers(1, 8), seeds, st.integers(0, 3))
def test_an_epoch_draws_each_example_at_most_once_and_fills_every_batch(lengths, size, seed, epoch):
    size = min(size, len(lengths))
    batches = Batches(encoded(lengths), batch_size=size, buckets=BUCKETS, seed=seed)
    assert batches.steps_per_epoch == len(lengths) // size
    drawn = []
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(epoch * batches.steps_per_epoch + step)
        rows = batch["labels"].tolist()
        assert len(rows) == size
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
        check_rows(batch, lengths, rows)
        drawn += rows
    assert len(drawn) == len(set(drawn)) == batches.steps_per_epoch * size


@given(many_lengths, st.integers(1, 8), seeds, st.lists(st.integers(0, 200), max_size=5))
def test_a_batch_is_a_function_of_seed_and_step(lengths, size, seed, earlier):
    size = min(size, len(lengths))
    used, fresh = (Batches(encoded(lengths), batch_size=size, buckets=BUCKETS, seed=seed) for _ in range(2))
    for step in earlier:
        used.batch(step)
    for step in (0, 7, 100):
        same(used.batch(step), fresh.batch(step))


def same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


@given(many_lengths, st.integers(1, 8), st.booleans())
def test_evaluation_sees_every_example_once(lengths, size, labelled):
    seen = []
    for batch in eval_batches(encoded(lengths, labelled), batch_size=size, buckets=BUCKETS):
        assert len(batch["input_ids"]) == len(batch["weights"]) == size
        assert ("labels" in batch) == labelled
        np.testing.assert_array_equal(batch["weights"], batch["index"] >= 0)
        assert batch["attention_mask"].any(axis=1).all()
        rows = [int(i) for i in batch["index"] if i >= 0]
        check_rows(batch, lengths, rows)
        smaller = [bucket for bucket in BUCKETS if bucket < batch["input_ids"].shape[1]]
        assert max(lengths[i] for i in rows) > max(smaller, default=0)
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))


def test_short_texts_do_not_pay_for_long_ones():
    batches = Batches(encoded([3] * 40 + [15] * 8), batch_size=8, buckets=BUCKETS, seed=0)
    lengths = [batches.batch(step)["input_ids"].shape[1] for step in range(6)]
    assert sorted(lengths) == [4] * 5 + [16]


def test_leftovers_never_move_past_the_longest_example():
    batches = Batches(encoded([3] * 5 + [5] * 5), batch_size=4, buckets=(4, 8, 512), seed=0)
    assert {batches.batch(step)["input_ids"].shape[1] for step in range(20)} <= {4, 8}


def test_epochs_and_seeds_differ_and_leave_out_others():
    one, two = (Batches(encoded([3] * 30 + [9]), batch_size=8, buckets=BUCKETS, seed=seed) for seed in (0, 1))
    epochs = [np.concatenate([one.batch(3 * e + s)["labels"] for s in range(3)]) for e in range(60)]
    assert len({tuple(order) for order in epochs}) == 60
    # All are drawn in time, the only long one too: its chance to be left out 60 times is (7/31)^60.
    assert set(np.concatenate(epochs)) == set(range(31))
    assert one.batch(0)["labels"].tolist() != two.batch(0)["labels"].tolist()


@pytest.mark.parametrize(("start", "count"), [(0, 3), (5, 11), (4, 0)])
def test_iterating_ahead_gives_the_same_batches(start, count):
    batches = Batches(encoded([3, 5, 9] * 5), batch_size=4, buckets=BUCKETS, seed=1)
    ahead = list(batches.iterate(start, count))
    assert len(ahead) == count
    for step, batch in enumerate(ahead, start):
        same(batch, batches.batch(step))


def test_an_iterator_may_be_left_early():
    batches = Batches(encoded([3, 5, 9] * 5), batch_size=4, buckets=BUCKETS, seed=1)
    same(next(batches.iterate(2, 1000)), batches.batch(2))


def test_float_labels_stay_float():
    data = encoded([3, 3])
    data = Encoded(data.input_ids, data.token_type_ids, data.offsets, np.array([0.5, 1.5], np.float32), PAD)
    assert Batches(data, batch_size=2, buckets=(4,), seed=0).batch(0)["labels"].dtype == np.float32


@pytest.mark.parametrize(
    ("lengths", "size", "buckets", "error", "problem"),
    [
        ([3], 2, BUCKETS, DataError, "1 training examples do not fill one batch of 2"),
        ([3], 0, BUCKETS, ConfigError, "batch_size 0"),
        ([3], 1, (), ConfigError, "not ascending"),
        ([3], 1, (8, 8), ConfigError, "not ascending"),
        ([3], 1, (0, 8), ConfigError, "not ascending"),
        ([17], 1, BUCKETS, ConfigError, "longest example has 17 tokens"),
    ],
)
def test_what_cannot_be_batched(lengths, size, buckets, error, problem):
    with pytest.raises(error, match=problem):
        Batches(encoded(lengths), batch_size=size, buckets=buckets, seed=0)
    if error is ConfigError:
        with pytest.raises(error, match=problem):
            eval_batches(encoded(lengths), batch_size=size, buckets=buckets)


def test_training_needs_labels():
    with pytest.raises(DataError, match="no labels"):
        Batches(encoded([3], labelled=False), batch_size=1, buckets=BUCKETS, seed=0)
