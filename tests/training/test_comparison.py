"""Laws of comparing two models on the same examples."""

import numpy as np
import pytest

from mlprune_jax.training.comparison import Outcomes, compare


def judged(right):
    """Outcomes of a model that answers 1 where it is right, and should everywhere."""
    right = np.asarray(right)
    return Outcomes(right.astype(int), right, lambda rows: {"accuracy": float(right[rows].mean())}, {})


@pytest.fixture
def two():
    """One that is right in 90 % of 1000 examples, and one that is right where it is but for 8 %."""
    draw = np.random.default_rng(1)
    first = draw.random(1000) < 0.9
    return judged(first), judged(first ^ (draw.random(1000) < 0.08))


def test_a_model_is_as_good_as_itself(two):
    told = compare(two[0], two[0], resamples=20)
    assert told == {"difference": {"accuracy": 0}, "interval_95": {"accuracy": [0, 0]}} | {
        "agreement": 1,
        "gained": 0,
        "lost": 0,
    }


def test_what_one_gains_the_other_loses(two):
    there, back = compare(*two, resamples=50), compare(*two[::-1], resamples=50)
    assert there["difference"]["accuracy"] == -back["difference"]["accuracy"] > 0
    assert there["interval_95"]["accuracy"] == pytest.approx([-end for end in back["interval_95"]["accuracy"][::-1]])
    assert (there["gained"], there["lost"]) == (back["lost"], back["gained"])
    assert there["agreement"] == back["agreement"] == 1 - (there["gained"] + there["lost"]) / 1000


def test_the_interval_is_that_of_paired_proportions(two):
    """The difference of two paired proportions b/n and c/n has the variance (b + c - (b - c)^2 / n) / n^2."""
    told = compare(*two)
    gained, lost = told["gained"], told["lost"]
    half = 1.96 * np.sqrt(gained + lost - (gained - lost) ** 2 / 1000) / 1000
    low, high = told["interval_95"]["accuracy"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)  # 1000 samples give its ends to some 4 %
    assert (high + low) / 2 == pytest.approx(told["difference"]["accuracy"], abs=0.1 * half)
    apart = 1.96 * np.sqrt(sum(model.correct.var() for model in two) / 1000)
    assert half < 0.8 * apart  # as if each had its own examples


def test_numbers_are_neither_right_nor_wrong():
    gold = np.arange(9.0)

    def near(noise):
        answers = gold + noise
        return Outcomes(answers, None, lambda rows: {"error": float(np.abs(answers - gold)[rows].mean())}, {})

    told = compare(near(1), near(3), resamples=5)
    assert told == {"difference": {"error": -2}, "interval_95": {"error": [-2, -2]}}
