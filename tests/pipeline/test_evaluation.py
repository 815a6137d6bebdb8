"""What evaluation refuses, and that it takes a folder's classes by their names, as prediction does."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlprune_jax.errors import ModelError, NumericalError
from mlprune_jax.pipeline.evaluation import evaluate_folder


@pytest.fixture
def changed(tiny, tmp_path):
    """``(what becomes of its arrays, labels) -> `` a copy of the tiny model."""

    def change(of_arrays, labels=None):
        folder = tmp_path / "changed"
        shutil.copytree(tiny.model, folder)
        save_file(of_arrays(load_file(folder / "model.safetensors")), folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        if labels:
            config["id2label"] = {str(i): label for i, label in enumerate(labels)}
            config["label2id"] = {label: i for i, label in enumerate(labels)}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return change


def test_classes_in_another_order_score_the_same(tiny, changed):
    """Found by review: the score of one class was that of the other."""

    def swap(arrays):
        return {k: np.ascontiguousarray(v[::-1]) if k.startswith("classifier.") else v for k, v in arrays.items()}

    wanted = evaluate_folder(tiny.model, data=str(tiny.data))
    found = evaluate_folder(changed(swap, labels=("1", "0")), data=str(tiny.data))
    assert 0 < wanted["accuracy"] < 1
    assert wanted["accuracy"] != 0.5
    assert {k: found[k] for k in ("accuracy", "loss")} == pytest.approx({k: wanted[k] for k in ("accuracy", "loss")})


def test_an_untrained_head_is_not_scored(tiny, changed):
    """Found by review: an encoder alone got a head from chance, and its accuracy."""
    folder = changed(lambda arrays: {k: v for k, v in arrays.items() if not k.startswith("classifier.")})
    with pytest.raises(ModelError, match="no trained head: there is nothing to evaluate"):
        evaluate_folder(folder, data=str(tiny.data))


def test_logits_that_are_not_finite_are_no_answers(tiny, changed):
    """Found by review: they were scored as the first class, with a loss of NaN."""
    highest = {"bert.pooler.dense.weight": 1e4, "classifier.weight": 3e38}  # every weight stays finite
    folder = changed(
        lambda arrays: {k: np.sign(v) * np.float32(highest[k]) if k in highest else v for k, v in arrays.items()}
    )
    with pytest.raises(NumericalError, match="logits are not finite"):
        evaluate_folder(folder, data=str(tiny.data))
