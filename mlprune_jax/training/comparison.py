"""Two models on the same examples: how far apart they are, and how far chance alone would move that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Rows = np.ndarray | slice


class Outcomes(NamedTuple):
    """A model's evaluation, example by example.

    Attributes:
        answers: what it said of each: a class, a number or a text.
        correct: whether that was right; ``None`` of numbers.
        score: the metrics of some of the examples, each as often as it is named.
        facts: what is told of all of them beside the metrics: the mean loss, counts.
    """

    answers: Sequence[Any] | np.ndarray
    correct: np.ndarray | None
    score: Callable[[Rows], dict[str, float]]
    facts: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """``{metric: value, ...}`` of all examples, and `facts`."""
        return self.score(slice(None)) | self.facts


def compare(ours: Outcomes, theirs: Outcomes, *, resamples: int = 1000) -> dict[str, Any]:
    """How a model differs from another that answered the same examples.

    Both answer each example, so what makes one hard moves both scores: a difference is surer than the error of either
    score says. Its interval is the paired bootstrap's: the middle 95 % of what samples of the examples, as many and
    with repetition, give. It speaks of these examples; another seed of the training moves scores beside it.

    Args:
        ours, theirs: of the same examples in the same order.
        resamples: how many samples are drawn, always the same ones.

    Returns:
        ``{"difference": {metric: ours less theirs}, "interval_95": {metric: [low, high]}}``; where an answer is right
        or wrong also ``"agreement"``, the share of equal answers, and how many examples ours alone gets right,
        ``"gained"``, or theirs alone, ``"lost"``.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    """
    count = len(ours.answers)
    draw = np.random.default_rng(0)
    whole = _difference(ours, theirs, slice(None))
    samples = [_difference(ours, theirs, draw.integers(count, size=count)) for _ in range(resamples)]
    intervals = {name: np.quantile([sample[name] for sample in samples], (0.025, 0.975)).tolist() for name in whole}
    told = {"difference": whole, "interval_95": intervals}
    if ours.correct is None or theirs.correct is None:
        return told
    return told | {
        "agreement": float(np.mean([a == b for a, b in zip(ours.answers, theirs.answers, strict=True)])),
        "gained": int(np.sum(ours.correct & ~theirs.correct)),
        "lost": int(np.sum(theirs.correct & ~ours.correct)),
    }


def _difference(ours: Outcomes, theirs: Outcomes, rows: Rows) -> dict[str, float]:
    other = theirs.score(rows)
    return {name: value - other[name] for name, value in ours.score(rows).items()}
