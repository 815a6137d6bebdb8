"""SQuAD's scores: exact match and F1 of answer texts, and a span model's evaluation, window by window."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.answers import Answers
from mlprune_jax.data.squad import Questions
from mlprune_jax.data.windows import Windows
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
    totals = np.zeros(2)
    for name, texts in zip(asked.ids, asked.answers, strict=True):
        if name not in answers:
            continue
        gold = texts
        if may_have_no_answer:
            gold = [text for text in texts if normalized_answer(text)] or [""]
        scores = [
            (answer_f1(answers[name], text, none_counts=may_have_no_answer), exact_match(answers[name], text))
            for text in gold
        ]
        totals += np.max(scores, axis=0)
    f1, exact = (totals / len(asked)).tolist()
    unanswered = sum(name not in answers for name in asked.ids)
    return {"f1": f1, "exact_match": exact, "examples": len(asked), "unanswered": unanswered}


def evaluate_answers(
    forward: Any, params: Any, windows: Windows, batches: Iterable[dict[str, Any]], settings: TaskSettings
) -> dict[str, Any]:
    """Metrics and mean loss of a span model over a split; of the logits, only each question's best spans are kept.

    Args:
        forward: see `mlprune_jax.training.metrics.make_forward`.
        params: the model's parameters.
        windows: the split, with labels.
        batches: of it, from `mlprune_jax.data.batches.eval_batches`.
        settings: how answers are chosen.

    Returns:
        As `score_answers`, with ``"loss"``, the mean over windows, and ``"windows"``.

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
    scores = score_answers(asked, texts, may_have_no_answer=settings.answering["null_threshold"] is not None)
    return scores | {"loss": float(np.concatenate(losses).mean()), "windows": len(windows)}
