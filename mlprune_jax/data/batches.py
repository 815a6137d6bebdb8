"""Batches of one length each: any training batch is a function of (seed, step), and evaluation sees each example once.

A batch is padded to the smallest bucket that holds its longest example, so short texts do not pay for long ones, and
a jitted step is compiled once for each bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int64

from mlprune_jax.data.encode import Encoded
from mlprune_jax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


class Batches:
    """Shuffled training batches.

    In every epoch each example is drawn at most once: the ``n mod batch_size`` that do not fill a batch are left out,
    others in each epoch, evenly over all lengths. What does not fill a batch of its bucket moves up to the next.

    Args:
        encoded: the training split, with labels.
        batch_size: rows of a batch.
        buckets: lengths in tokens that a batch may have, ascending; the last holds the longest example.
        seed: of the order.
        columns: what a batch holds beside its examples, by name: from their numbers and the batch's length.

    Raises:
        ConfigError: the buckets are not ascending or too short, or the batch size is below 1.
        DataError: there are fewer examples than ``batch_size``, or they have no labels.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        buckets: Sequence[int],
        seed: int,
        columns: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] | None = None,
    ):
        _check_batch_size(batch_size)
        if encoded.labels is None:
            raise DataError("the training examples have no labels", hint="pass a split that has labels")
        if len(encoded) < batch_size:
            raise DataError(
                f"{len(encoded)} training examples do not fill one batch of {batch_size}",
                hint="use a smaller batch size or more examples",
            )
        self._encoded = encoded
        self._batch_size = batch_size
        self._seed = seed
        self._columns = columns or {}
        self._buckets, self._bucket_of = _sort_into_buckets(encoded, buckets)
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)
        self.steps_per_epoch = len(encoded) // batch_size

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same (seed, step), whatever was asked before.

        Args:
            step: counts on from 0 through all epochs.

        Returns:
            ``input_ids``, ``attention_mask`` and ``token_type_ids`` as int32 [batch_size, length], ``labels``
            [batch_size], or [batch_size, 2] for spans.
        """
        return self._rows(int(step), slice(None))

    def iterate(self, start_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of ``num_steps`` steps from ``start_step`` on, this process's rows, made ahead in threads."""
        if num_steps == 0:
            return iter(())
        import grain

        share = process_share(self._batch_size)
        steps = grain.MapDataset.range(start_step, start_step + num_steps).map(lambda step: self._rows(step, share))
        # The data is in memory: a few threads keep ahead of any step, more would fight over the interpreter.
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def _rows(self, step: int, share: slice) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        rows, lengths = self._plan(epoch)
        drawn, length = rows[position][share], int(lengths[position])
        more = {name: column(drawn, length) for name, column in self._columns.items()}
        return gather(self._encoded, drawn, length) | more

    def _plan_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, "steps batch"], Int64[np.ndarray, " steps"]]:
        """Which examples each batch of the epoch holds, and its length."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._encoded))[: self.steps_per_epoch * self._batch_size]
        bucket_of = self._bucket_of[order]
        rows, lengths = [], []
        waiting = order[:0]
        for bucket, length in enumerate(self._buckets):
            members = np.concatenate([waiting, order[bucket_of == bucket]])
            full = len(members) // self._batch_size
            rows.append(members[: full * self._batch_size].reshape(full, self._batch_size))
            lengths += [length] * full
            waiting = members[full * self._batch_size :]
        shuffled = rng.permutation(self.steps_per_epoch)
        return np.concatenate(rows)[shuffled], np.array(lengths, np.int64)[shuffled]


def process_share(rows: int) -> slice:
    """The rows of a batch that this of jax's processes provides: all of them where it is the only one."""
    import grain

    shard = grain.sharding.ShardByJaxProcess()
    count = rows // shard.shard_count
    return slice(shard.shard_index * count, (shard.shard_index + 1) * count)


def eval_batches(encoded: Encoded, *, batch_size: int, buckets: Sequence[int]) -> Iterator[Batch]:
    """Every example exactly once, short ones first.

    Args:
        encoded: the split; labels are optional.
        batch_size: rows of a batch; the last one is filled up with copies of its first row.
        buckets: lengths in tokens that a batch may have, ascending; the last holds the longest example.

    Returns:
        Batches as of `Batches.batch` (``labels`` only where there are some), and with them ``weights``, float32
        [batch_size], 0 for filled-up rows and 1 else, and ``index``, int32 [batch_size], the example's place in
        ``encoded``, -1 for filled-up rows.

    Raises:
        ConfigError: the buckets are not ascending or too short, or the batch size is below 1.
    """
    _check_batch_size(batch_size)
    lengths, bucket_of = _sort_into_buckets(encoded, buckets)
    order = np.argsort(encoded.lengths, kind="stable")
    starts = range(0, len(encoded), batch_size)
    return (_eval_batch(encoded, order[i : i + batch_size], batch_size, lengths, bucket_of) for i in starts)


def _eval_batch(
    encoded: Encoded, rows: np.ndarray, batch_size: int, buckets: Sequence[int], bucket_of: np.ndarray
) -> Batch:
    missing = batch_size - len(rows)
    # Copies rather than empty rows: attention over nothing would be NaN.
    batch = gather(encoded, np.append(rows, np.full(missing, rows[0])), buckets[bucket_of[rows].max()])
    batch["weights"] = np.append(np.ones(len(rows), np.float32), np.zeros(missing, np.float32))
    batch["index"] = np.append(rows, np.full(missing, -1)).astype(np.int32)
    return batch


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} is below 1", hint="use 1 or more")


def _sort_into_buckets(encoded: Encoded, buckets: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
    """The buckets that are needed at all, and the one of each example."""
    longest = int(encoded.lengths.max(initial=1))
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in pairwise(buckets)):
        raise ConfigError(f"buckets {tuple(buckets)} are not ascending lengths", hint="such as (32, 64, 128)")
    if buckets[-1] < longest:
        raise ConfigError(
            f"the longest example has {longest} tokens, the last of the buckets {tuple(buckets)} holds {buckets[-1]}",
            hint="encode with a smaller max_length, or add a bucket",
        )
    # Without the longer ones, or examples left over would move up to a length that no example has.
    needed = tuple(buckets[: int(np.searchsorted(buckets, longest)) + 1])
    return needed, np.searchsorted(needed, encoded.lengths)


def token_places(
    encoded: Encoded, rows: np.ndarray, length: int
) -> tuple[Int64[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    """Where the tokens of examples lie in ``encoded.input_ids``, and which of ``length`` places have one."""
    starts = encoded.offsets[rows, None]
    places = np.arange(length)
    real = places < encoded.offsets[rows + 1, None] - starts
    return np.where(real, starts + places, 0), real


def gather(encoded: Encoded, rows: np.ndarray, length: int) -> Batch:
    """The examples ``rows``, padded to ``length`` tokens."""
    at, real = token_places(encoded, rows, length)
    batch = {
        "input_ids": np.where(real, encoded.input_ids[at], np.int32(encoded.pad_id)),
        "attention_mask": real.astype(np.int32),
        "token_type_ids": np.where(real, encoded.token_type_ids[at], np.int32(0)),
    }
    if encoded.labels is not None:
        batch["labels"] = encoded.labels[rows]
    return batch
