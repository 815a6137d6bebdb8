"""SQuAD's scores: exact match and F1 of answer texts, and a span model's evaluation, window by window."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.answers import Answers
from mlprune_jax.data.squad import Questions
from mlprune_jax.data.windows import Windows
from mlprune_jax.training.comparison import Outcomes
from mlprune_jax.training.metrics import forward_batches

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalized_answer(text: str) -> str:
    """Lower case without punctuation and articles, single blanks between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 where both are the same once normalized, else 0."""
    return float(normalized_answer(answer) == normalized_answer(gold))


def answer_f1(answer: str, gold: str, *, none_counts: bool) -> float:
    """F1 of the words that two answers have, once normalized.

    Args:
        answer, gold: the texts.
        none_counts: two empty answers agree, as in SQuAD 2.0; in 1.1 they share no word and score 0.
    """
    said, wanted = normalized_answer(answer).split(), normalized_answer(gold).split()
    if none_counts and not (said and wanted):
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def score_answers(asked: Questions, answers: Mapping[str, str], *, may_have_no_answer: bool = False) -> dict[str, Any]:
    """Exact match and F1 as SQuAD defines them, each the best over a question's right answers, mean over questions.

    Args:
        asked: questions with their answers.
        answers: question id -> text, "" for no answer. A question without an entry scores 0 and is counted.
        may_have_no_answer: by the rules of SQuAD 2.0.

    Returns:
        ``{"f1", "exact_match"}`` in [0, 1], ``"examples"``: all questions, ``"unanswered"``: those without an entry.
    """
    points = answer_points(asked, answers, may_have_no_answer=may_have_no_answer)
    unanswered = sum(name not in answers for name in asked.ids)
    return _means(points) | {"examples": len(asked), "unanswered": unanswered}


def answer_points(
    asked: Questions, answers: Mapping[str, str], *, may_have_no_answer: bool
) -> Float64[np.ndarray, "questions 2"]:
    """F1 and exact match of each question, in [0, 1]; arguments as of `score_answers`."""
    points = np.zeros((len(asked), 2))
    for row, (name, texts) in enumerate(zip(asked.ids, asked.answers, strict=True)):
        if name not in answers:
            continue
        gold = texts
        if may_have_no_answer:
            gold = [text for text in texts if normalized_answer(text)] or [""]
        scores = [
            (answer_f1(answers[name], text, none_counts=may_have_no_answer), exact_match(answers[name], text))
            for text in gold
        ]
        points[row] = np.max(scores, axis=0)
    return points


def evaluate_answers(
    forward: Any, params: Any, windows: Windows, batches: Iterable[dict[str, Any]], settings: TaskSettings
) -> Outcomes:
    """What a span model answers to each question of a split; of its logits, only each question's best spans are kept.

    Args:
        forward: see `mlprune_jax.training.metrics.make_forward`.
        params: the model's parameters.
        windows: the split, with labels.
        batches: of it, from `mlprune_jax.data.batches.eval_batches`.
        settings: how answers are chosen.

    Returns:
        Outcomes whose metrics are those of `score_answers`, with ``"loss"``, the mean over windows, and ``"windows"``.

    Raises:
        NumericalError: logits that are not finite.
    """
    answers = Answers(windows, **settings.answering)
    losses = []
    for batch, logits, loss in forward_batches(forward, params, batches):
        answers.add(batch["index"].tolist(), logits)
        losses.append(loss)
    asked = windows.asked
    texts = {name: answers.answer(question).text for question, name in enumerate(asked.ids)}
    points = answer_points(asked, texts, may_have_no_answer=settings.answering["null_threshold"] is not None)
    facts = {"examples": len(asked), "unanswered": 0, "loss": float(np.concatenate(losses).mean())}
    return Outcomes(
        answers=list(texts.values()),
        correct=points[:, 1] == 1,
        score=lambda rows: _means(points[rows]),
        facts=facts | {"windows": len(windows)},
    )


def _means(points: Float64[np.ndarray, "questions 2"]) -> dict[str, float]:
    f1, exact = points.mean(axis=0).tolist()
    return {"f1": f1, "exact_match": exact}
