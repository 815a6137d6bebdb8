"""How batches become calls: on a CPU several small ones side by side, on accelerators one, begun ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np

from mlprune_jax.inference.forward import ModelParams
from mlprune_jax.inference.plan import Decision, decide
from pallas_kernels import Implementation
from pallas_kernels.block_sparse_matmul.costs import AnyTable
from pallas_kernels.device import cores, platform

Item = TypeVar("Item")

TOKENS = 512
"""Tokens of one call, about. Measured on a CPU with AVX512 and 2 cores (`benchmarks/results/calls_*.json`), for four
layers of BERT-base dense, with a fifth of their heads and rows, and with blocks, run dense or unrolled: of calls of 128
to 4096 tokens, 512 were the fastest or within 6 % of it; a batch of 32 x 128 at once took up to 1.8 times as long."""

AHEAD = 2
"""Batches that are begun on an accelerator while one is waited for. There the host takes longer to start a pruned
model's call and to move its arrays than the kernels take (docs/speed/gpu.md, "Where a call's time goes")."""


def plan_calls(
    params: ModelParams,
    batch: int,
    length: int,
    dtype: str,
    implementation: Implementation | None,
    table: AnyTable | None,
) -> tuple[int, tuple[Decision, ...]]:
    """Rows of one call, and how its products run; arguments and errors as of `decide`."""
    rows = _rows(batch, length) if platform() == "cpu" else batch
    several = rows < batch
    return rows, decide(params, rows, length, dtype, implementation=implementation, side_by_side=several, table=table)


def _rows(batch: int, length: int) -> int:
    """Rows of one call: about `TOKENS`, and the same in all calls of a batch."""
    calls = -(-batch // max(TOKENS // length, 1))
    return -(-batch // calls)


def side_by_side(calls: int) -> int:
    """How many of a batch's calls run at once."""
    return min(calls, cores())


def begin_calls(call: Callable[..., Any], inputs: Sequence[np.ndarray], rows: int) -> Callable[[], np.ndarray]:
    """Begin a batch, ``rows`` of it in each call; what is returned waits for its results.

    Args:
        call: arrays of ``rows`` rows -> a jax array of as many.
        inputs: whole batches, of a multiple of ``rows``.
        rows: of one call.
    """
    calls = len(inputs[0]) // rows
    if calls == 1:
        result = call(*inputs)
        result.copy_to_host_async()
        return lambda: np.asarray(result)
    parts = zip(*(np.split(array, calls) for array in inputs), strict=True)
    results = [_workers().submit(lambda part=part: np.asarray(call(*part))) for part in parts]
    return lambda: np.concatenate([result.result() for result in results])


def begun_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order, each handed on once the next `AHEAD` are there, on a CPU at once."""
    waiting: deque[Item] = deque()
    ahead = 0 if platform() == "cpu" else AHEAD
    for item in items:
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


@cache
def _workers() -> ThreadPoolExecutor:
    """One thread for each core, shared by all models."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="mlprune")
