"""A stored classifier's outputs are matched to a task's classes by name, not by where they happen to stand."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from mlprune_jax.models.class_order import in_task_order

NLI = ("entailment", "neutral", "contradiction")


@pytest.fixture
def fine_tuned(tiny, tmp_path):
    """Loads a folder whose config names its three classes."""

    def load(*names):
        folder = tmp_path / "-".join(names)
        return folder, tiny.load(
            tiny.write_folder(folder, tiny.torch_tensors(), id2label={str(i): name for i, name in enumerate(names)})
        )

    return load


@pytest.mark.parametrize(
    "names", [("contradiction", "entailment", "neutral"), ("CONTRADICTION", "Entailment", "NEUTRAL")]
)
def test_every_class_keeps_its_own_output(fine_tuned, names):
    folder, loaded = fine_tuned(*names)
    ordered = in_task_order(loaded, [NLI], folder)
    assert ordered.labels == (names[1], names[2], names[0])
    for part in ("kernel", "bias"):
        np.testing.assert_array_equal(ordered.params["head"][part], loaded.params["head"][part][..., [1, 2, 0]])
    assert ordered.params["bert"] is loaded.params["bert"]


def test_a_second_spelling_counts(fine_tuned):
    folder, loaded = fine_tuned("bad", "so_so", "good")
    ordered = in_task_order(loaded, [("0", "1", "2"), ("good", "so-so", "bad")], folder)
    assert ordered.labels == ("good", "so_so", "bad")


def test_the_same_order_changes_nothing(fine_tuned, caplog):
    folder, loaded = fine_tuned(*NLI)
    with caplog.at_level(logging.INFO, "mlprune_jax"):
        assert in_task_order(loaded, [NLI], folder) is loaded
    assert not caplog.records


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("entailment", "neutral", "other")])
def test_names_that_are_not_the_tasks_are_taken_as_they_stand_and_said_so(fine_tuned, caplog, names):
    folder, loaded = fine_tuned(*names)
    with caplog.at_level(logging.WARNING, "mlprune_jax"):
        assert in_task_order(loaded, [NLI], folder) is loaded
    assert ", ".join(names) in caplog.text
    assert ", ".join(NLI) in caplog.text


def test_names_that_differ_in_punctuation_alone_are_told_apart(fine_tuned):
    folder, loaded = fine_tuned("1", "0", "-1")
    ordered = in_task_order(loaded, [("-1", "0", "1")], folder)
    assert ordered.labels == ("-1", "0", "1")


def test_a_model_without_class_names_is_left_as_it_is(tiny, tmp_path):
    folder = tiny.write_folder(tmp_path, tiny.torch_tensors())
    loaded = tiny.load(folder)
    assert in_task_order(loaded, [NLI], folder) is loaded
