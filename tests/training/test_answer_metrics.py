"""SQuAD's scores, by hand and as two published systems got them."""

import json

import pytest

from mlprune_jax.data.squad import SQUAD, Questions, load_squad
from mlprune_jax.training.answer_metrics import answer_f1, exact_match, normalized_answer, score_answers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Cat, a dog!", "cat dog"),
        ("another theatre", "another theatre"),
        ("a-b", "ab"),
        ("U.S.A.", "usa"),
        ("\ta\u00a0b", "b"),
        ("«The» 5 %", "« » 5"),
        ("the", ""),
    ],
)
def test_what_does_not_count(text, wanted):
    assert normalized_answer(text) == wanted


def test_f1_counts_words_as_often_as_both_have_them():
    assert answer_f1("x x y", "x y y z", none_counts=False) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert answer_f1("x", "y", none_counts=False) == 0
    assert exact_match("The X.", "x") == 1


def test_empty_answers_agree_in_version_2_alone():
    assert answer_f1("the", "a", none_counts=True) == 1
    assert answer_f1("the", "a", none_counts=False) == 0
    assert answer_f1("x", "", none_counts=True) == answer_f1("", "x", none_counts=True) == 0


def questions(*answers):
    texts = (["?"] * len(answers), ["c"] * len(answers))
    return Questions(texts, None, "test", tuple("abcdef"[: len(answers)]), answers)


def test_the_best_gold_answer_counts_and_what_has_no_entry_scores_0():
    asked = questions(("x y", "x"), ("z",), ("w",))
    scores = score_answers(asked, {"a": "x", "b": "z v", "of another file": "w", "too": "w"})
    assert scores == {"f1": pytest.approx((1 + 2 / 3) / 3), "exact_match": pytest.approx(1 / 3), "examples": 3} | {
        "unanswered": 1
    }


def test_no_answer_is_right_where_there_is_none():
    asked = questions((), (), ("x", "the"))
    scores = score_answers(asked, {"a": "", "b": "x", "c": "x"}, may_have_no_answer=True)
    assert (scores["f1"], scores["exact_match"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    # A gold answer that is nothing but an article is none, so silence does not match it.
    assert score_answers(asked, {"a": "", "b": "", "c": ""}, may_have_no_answer=True)["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("system", ["bert_ensemble", "logistic_regression"])
def test_the_scores_of_published_systems(shared, system):
    folder = shared / "data" / "squad"
    asked = load_squad(SQUAD["squad"], folder, "dev")
    scores = score_answers(asked, json.loads((folder / "predictions" / f"{system}.json").read_text()))
    stored = json.loads((folder / "predictions" / "scores.json").read_text())[system]
    assert round(100 * scores["f1"], 4) == stored["f1"]
    assert round(100 * scores["exact_match"], 4) == stored["exact_match"]
    assert scores["examples"] - scores["unanswered"] == stored["answered"]
