"""Several computations timed side by side, round by round, so that a slow minute of a shared machine falls on all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from pallas_kernels.errors import KernelError


class Timing(NamedTuple):
    """Wall seconds of one call.

    Attributes:
        p50: median.
        p90: smallest measured time that nine calls in ten did not exceed.
        seconds: every measured call, in the order of the rounds.
    """

    p50: float
    p90: float
    seconds: tuple[float, ...]


def measure_interleaved(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = 20, repeats: int = 1, warmups: int = 2
) -> dict[str, Timing]:
    """Time calls in turn: A, B, A, B, ..., after each was warmed up.

    Args:
        calls: name -> a function without arguments that returns jax arrays, or any tree of them; their computation is
            waited for.
        rounds: measurements of each.
        repeats: calls in one measurement, of which the mean is taken; more than one for calls of microseconds.
        warmups: calls of each before the first measurement; the first compiles.

    Returns:
        name -> `Timing`, in the order of ``calls``.

    Raises:
        KernelError: no rounds, no repeats, or warm-ups below zero.
    """
    if rounds < 1 or repeats < 1 or warmups < 0:
        raise KernelError(f"timing needs rounds and repeats of at least 1, got {rounds=} {repeats=} {warmups=}")
    for call in calls.values():
        for _ in range(warmups):
            jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - started) / repeats)
    return {name: summarize(values) for name, values in seconds.items()}


def summarize(seconds: Sequence[float]) -> Timing:
    """The `Timing` of measured seconds.

    Raises:
        KernelError: no measurement.
    """
    if not seconds:
        raise KernelError("no measurement to summarize")
    ordered = sorted(seconds)
    return Timing(statistics.median(ordered), ordered[math.ceil(0.9 * len(ordered)) - 1], tuple(seconds))


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times as long ``slow`` takes: the median of the ratios of neighbours in one round.

    That is what a drifting machine disturbs least; the ratio of two medians compares different minutes.

    Raises:
        KernelError: timings of different numbers of rounds, which have no neighbours.
    """
    if len(slow.seconds) != len(fast.seconds):
        raise KernelError(f"timings to compare need one run, got {len(slow.seconds)} and {len(fast.seconds)} rounds")
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
