"""Logits to answers: the best span over all windows, against a search that tries every pair of tokens."""

import math
from itertools import product

import numpy as np
import pytest

from mlprune_jax.data.answers import Answers
from mlprune_jax.data.demo import write_demo
from mlprune_jax.data.encode import load_tokenizer
from mlprune_jax.data.squad import Questions
from mlprune_jax.data.windows import encode_windows

LONG = "the  film is good but its plot was very dull , although this cast seems lovely and witty ."
CHOICE = {"n_best": 5, "max_answer_length": 3}


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Three questions, the first and last of two windows each, the second on a context without a token."""
    tokenizer = load_tokenizer(write_demo(tmp_path_factory.mktemp("demo"), train_size=1, dev_size=1))
    asked = Questions((["the plot", "cast", "film"], [LONG, " ", LONG]), None, "test", ("a", "b", "c"), ((), (), ()))
    return encode_windows(asked, tokenizer, max_length=16, doc_stride=3, max_query_length=5)


@pytest.fixture
def logits(windows):
    return np.random.default_rng(0).normal(size=(len(windows), 20, 2)).astype(np.float32)


def every_span(windows, logits, question, longest):
    """Score of each span of characters, by trying all pairs of tokens of all windows."""
    found = {}
    for row in np.flatnonzero(windows.question == question):
        chars = windows.chars[windows.offsets[row] : windows.offsets[row + 1]]
        for first, last in product(range(len(chars)), repeat=2):
            if chars[first, 0] < 0 or chars[last, 0] < 0 or not first <= last < first + longest:
                continue
            span = int(chars[first, 0]), int(chars[last, 1])
            score = float(logits[row, first, 0] + logits[row, last, 1])
            found[span] = max(score, found.get(span, -math.inf))
    return sorted(found.items(), key=lambda item: -item[1])


def collected(windows, logits, order, **options):
    answers = Answers(windows, **{**CHOICE, **options})
    for rows in order:
        answers.add(rows, logits[rows])
    return [answers.answer(question) for question in range(len(windows.asked))]


@pytest.mark.parametrize("longest", [1, 3, 50])
@pytest.mark.parametrize("n_best", [1, 5, 10_000])
def test_the_best_span_is_found_and_its_score_is_its_share(windows, logits, longest, n_best):
    answers = collected(windows, logits, [range(len(windows))], max_answer_length=longest, n_best=n_best)
    for question in (0, 2):
        ranked = every_span(windows, logits, question, longest)[:n_best]
        (begin, end), best = ranked[0]
        assert answers[question].text == LONG[begin:end]
        assert answers[question].start == begin
        assert answers[question].score == pytest.approx(
            1 / sum(math.exp(score - best) for _, score in ranked), rel=1e-5
        )


def test_windows_may_come_in_any_order(windows, logits):
    assert len(windows) == 5
    first = collected(windows, logits, [[0, 1, 2], [3, 4]])
    assert collected(windows, logits, [[4], [1, 3], [2], [0]]) == first


def test_what_lies_outside_of_the_context_is_no_answer(windows, logits):
    wild = logits.copy()
    for row in range(len(windows)):
        chars = windows.chars[windows.offsets[row] : windows.offsets[row + 1]]
        wild[row, : len(chars)][chars[:, 0] < 0] = 1e6
        wild[row, len(chars) :] = 1e6
    assert collected(windows, wild, [range(5)]) == collected(windows, logits, [range(5)])


def test_a_context_without_tokens_has_no_answer(windows, logits):
    assert collected(windows, logits, [range(5)])[1] == ("", 1.0, None)


def test_no_answer_wins_by_more_than_the_threshold_in_the_window_that_doubts_it_most(windows, logits):
    rows = np.flatnonzero(windows.question == 0)
    best = every_span(windows, logits, 0, 3)[0][1]
    doubting = logits.copy()
    doubting[rows[0], 0] = [best + 9, 0]
    doubting[rows[1], 0] = [best / 2 + 0.5, best / 2 + 0.5]  # one above the best
    some = collected(windows, doubting, [range(5)], null_threshold=1.5)[0]
    none = collected(windows, doubting, [range(5)], null_threshold=0.5)[0]
    assert (some.text != "", none.text, none.start) == (True, "", None)
    assert none.score == pytest.approx(some.score * math.e, rel=1e-4)
    assert collected(windows, doubting, [range(5)])[0].text == some.text
