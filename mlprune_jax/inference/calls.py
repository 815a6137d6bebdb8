"""Batches on a CPU as several calls side by side: small enough for the caches, enough of them for all cores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from mlprune_jax.inference.forward import ModelParams
from mlprune_jax.inference.plan import Decision, decide
from pallas_kernels import Implementation
from pallas_kernels.block_sparse_matmul.choose import GAIN, Choice
from pallas_kernels.block_sparse_matmul.costs import CostTable
from pallas_kernels.device import platform

DENSE_TOKENS = 1024
"""Tokens of one call where every product is dense, about: of a batch of 32 x 128, four BERT-base layers took 1.21 s in
calls of 512 tokens, 1.28 in calls of 1024 and 1.55 at once; with a fifth of their heads and rows 0.27, 0.27 and 0.29
(2 cores, 24 Nov 2026; `benchmarks/calls.py` measures it again)."""

UNROLLED_TOKENS = 128
"""The same where products are unrolled, whose many small parts leave cores idle: of a batch of 8 x 128, four layers
with 64x64 blocks took 97 ms in calls of one row side by side, 147 in turn, and 146 at once (`benchmarks/results`)."""

SMALL_CALL = 1.12
"""How many times as long those layers took, run dense, in calls of `UNROLLED_TOKENS` as of `DENSE_TOKENS`."""


def plan_calls(
    params: ModelParams,
    batch: int,
    length: int,
    dtype: str,
    implementation: Implementation | None,
    table: CostTable | None,
) -> tuple[int, tuple[Decision, ...]]:
    """Rows of one call, and how its products run; arguments and errors as of `decide`."""
    if platform() != "cpu":
        return batch, decide(params, batch, length, dtype, implementation=implementation, table=table)
    large, small = (_rows(batch, length, tokens) for tokens in (DENSE_TOKENS, UNROLLED_TOKENS))
    several = small < batch
    decisions = decide(params, small, length, dtype, implementation=implementation, side_by_side=several, table=table)
    if all(decision.choice.implementation != "xla" for decision in decisions):
        return large, _in_calls_of(large, small, decisions)
    if implementation is None and small < large and not _pays(decisions):
        dense = tuple(decision._replace(choice=_too_little(decision)) for decision in decisions)
        return large, _in_calls_of(large, small, dense)
    return small, decisions


def _in_calls_of(large: int, small: int, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Decisions that were made for calls of ``small`` rows, where all are dense and calls have ``large``."""
    return tuple(decision._replace(tokens=decision.tokens // small * large) for decision in decisions)


def _rows(batch: int, length: int, tokens: int) -> int:
    """Rows of one call: about ``tokens``, and the same in all calls of a batch."""
    calls = -(-batch // max(tokens // length, 1))
    return -(-batch // calls)


def _pays(decisions: Sequence[Decision]) -> bool:
    """Whether sparse products gain more than the others lose in small calls, by the margin that one of them needs."""
    sizes = [math.prod(decision.shape) * decision.tokens for decision in decisions]
    return sum(map(_cost, sizes, decisions)) * GAIN < sum(sizes)


def _cost(size: int, decision: Decision) -> float:
    choice = decision.choice
    # Unmeasured, a product is sparse only where it is sure to gain; how much is not known.
    return size * SMALL_CALL if choice.implementation == "dense" else size / (choice.ratio or 1.0)


def _too_little(decision: Decision) -> Choice:
    if decision.choice.implementation == "dense":
        return decision.choice
    reason = f"too little of the model gains for calls of {UNROLLED_TOKENS} tokens; {decision.choice.reason}"
    return decision.choice._replace(implementation="dense", reason=reason)


def side_by_side(calls: int) -> int:
    """How many of a batch's calls run at once."""
    return min(calls, os.cpu_count() or 1)


def run_calls(call: Callable[..., Any], inputs: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Results of a batch, ``rows`` of it in each call.

    Args:
        call: arrays of ``rows`` rows -> an array of as many.
        inputs: whole batches, of a multiple of ``rows``.
        rows: of one call.
    """
    calls = len(inputs[0]) // rows
    if calls == 1:
        return np.asarray(call(*inputs))
    parts = [np.split(array, calls) for array in inputs]
    return np.concatenate(list(_workers().map(lambda *part: np.asarray(call(*part)), *parts)))


@cache
def _workers() -> ThreadPoolExecutor:
    """One thread for each core, shared by all models."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="mlprune")
