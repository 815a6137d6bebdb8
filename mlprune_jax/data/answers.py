"""Start and end logits of windows to answers: characters of the original context, the best over all windows.

Windows are compared by their logits as they are, and a span that lies in several counts with its best window. The
other way, a token read only from the window where it has most context, needs all windows of a question at once; this
one takes them in any order and keeps a few spans of each question, no logits. It is also what training asks for: a
window without the answer learns to point at its first token, which lowers all of its other logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.lib.stride_tricks import sliding_window_view

from mlprune_jax.data.windows import Windows

Span = tuple[int, int]


class Answer(NamedTuple):
    """The answer to a question.

    Attributes:
        text: cut out of the context as it stands there; "" for none.
        score: its probability among the candidates that were kept.
        start: its first character in the context; None for no answer.
    """

    text: str
    score: float
    start: int | None


class Answers:
    """Takes the logits of windows, in any order, and gives the answers of their questions.

    A candidate is a run of up to ``max_answer_length`` tokens of the context; its score is its start's logit plus its
    end's. No answer scores the first token's, least of all windows: one window that sees an answer is enough.

    Args:
        windows: what the logits are for.
        n_best: candidates that are kept of each question.
        max_answer_length: tokens of an answer at most.
        null_threshold: no answer is given where its score is more than this above the best answer's; None: there is
            always one.
    """

    def __init__(self, windows: Windows, *, n_best: int, max_answer_length: int, null_threshold: float | None = None):
        self._windows = windows
        self._n_best = n_best
        self._max_answer_length = max_answer_length
        self._null_threshold = null_threshold
        self._best: list[dict[Span, float]] = [{} for _ in range(len(windows.asked))]
        self._none = [math.inf] * len(windows.asked)

    def add(self, rows: Iterable[int], logits: Float32[np.ndarray, "rows length 2"]) -> None:
        """Take the logits of the windows ``rows``; what lies beyond a window's tokens is not read."""
        for row, scores in zip(rows, logits, strict=True):
            question = int(self._windows.question[row])
            chars = self._windows.chars[self._windows.offsets[row] : self._windows.offsets[row + 1]]
            best = self._best[question]
            for span, score in self._candidates(chars, scores[: len(chars)]):
                best[span] = max(score, best.get(span, -math.inf))
            ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
            self._best[question] = dict(ranked[: self._n_best])
            self._none[question] = min(self._none[question], float(scores[0].sum()))

    def answer(self, question: int) -> Answer:
        """The answer to a question, by its place in ``windows.asked``."""
        best, none = self._best[question], self._none[question]
        if not best:  # a context without a single token
            return Answer("", 1.0, None)
        chosen, score = next(iter(best.items()))
        candidates: dict[Span | None, float] = {**best}
        if self._null_threshold is not None:
            candidates[None] = none
            if none - score > self._null_threshold:
                chosen = None
        highest = max(candidates.values())
        weights = {span: math.exp(value - highest) for span, value in candidates.items()}
        probability = weights[chosen] / sum(weights.values())
        if chosen is None:
            return Answer("", probability, None)
        begin, end = chosen
        return Answer(self._windows.asked.texts[1][question][begin:end], probability, begin)

    def _candidates(self, chars: np.ndarray, logits: Float32[np.ndarray, "tokens 2"]) -> Iterator[tuple[Span, float]]:
        """The best spans of one window, exactly: all of them are looked at."""
        tokens = np.flatnonzero(chars[:, 0] >= 0)
        if not tokens.size:
            return
        starts, ends = logits[tokens].T
        width = min(self._max_answer_length, len(tokens))
        beyond = np.full(width - 1, -np.inf, np.float32)
        totals = starts[:, None] + sliding_window_view(np.concatenate([ends, beyond]), width)
        count = min(self._n_best, totals.size)
        for place in np.argpartition(totals, totals.size - count, axis=None)[-count:]:
            first, more = divmod(int(place), width)
            if first + more < len(tokens):
                span = int(chars[tokens[first], 0]), int(chars[tokens[first + more], 1])
                yield span, float(totals[first, more])
