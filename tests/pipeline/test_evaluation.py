"""What evaluation refuses, and that it takes a folder's classes by their names, as prediction does."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlprune_jax.errors import ConfigError, DataError, ModelError, NumericalError
from mlprune_jax.pipeline import evaluation
from mlprune_jax.pipeline.evaluation import evaluate_folder


@pytest.fixture
def changed(tiny, tmp_path):
    """``(what becomes of its arrays, labels) -> `` a copy of the tiny model."""

    def change(of_arrays, labels=None):
        folder = tmp_path / "changed"
        shutil.copytree(tiny.model, folder, dirs_exist_ok=True)
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


def scattered(arrays):
    """Weights large enough that a text's answer depends on its words."""
    return {name: 20 * weight if weight.ndim == 2 else weight for name, weight in arrays.items()}


@pytest.mark.parametrize("max_length", [24, 8])
def test_two_models_are_compared_example_by_example(tiny, changed, max_length):
    """Found on rereading: where the other one's texts are cut elsewhere, its examples come in another order."""
    other = changed(scattered)
    config = json.loads((other / "config.json").read_text())
    config["mlprune"]["task"] |= {"max_length": max_length, "length_buckets": [max_length]}
    (other / "config.json").write_text(json.dumps(config))
    told = evaluate_folder(tiny.model, against=other, data=str(tiny.data))
    ours = evaluate_folder(tiny.model, data=str(tiny.data))
    theirs = evaluate_folder(other, data=str(tiny.data))
    assert {name: told[name] for name in ours} == ours
    against = told["against"]
    assert against["model"] == str(other)
    for name in ("accuracy", "loss"):
        assert against[name] == theirs[name]
        assert against["difference"][name] == ours[name] - theirs[name] != 0
        low, high = against["interval_95"][name]
        assert low <= against["difference"][name] <= high
    assert (against["gained"] - against["lost"]) / 24 == pytest.approx(against["difference"]["accuracy"])
    changed_sides = against["gained"] + against["lost"]  # of two classes
    assert against["agreement"] == pytest.approx(1 - changed_sides / 24)
    assert changed_sides > 0


def test_a_model_of_other_software_is_read_as_the_first(tiny, changed):
    other = changed(scattered)
    config = json.loads((other / "config.json").read_text())
    wanted = evaluate_folder(tiny.model, against=other, data=str(tiny.data))["against"]
    del config["mlprune"]
    (other / "config.json").write_text(json.dumps(config))
    assert evaluate_folder(tiny.model, against=other, data=str(tiny.data))["against"] == wanted
    config["max_position_embeddings"] = 16
    (other / "config.json").write_text(json.dumps(config))

    def shorten(arrays):
        name = "bert.embeddings.position_embeddings.weight"
        return arrays | {name: np.ascontiguousarray(arrays[name][:16])}

    save_file(shorten(load_file(other / "model.safetensors")), other / "model.safetensors")
    with pytest.raises(ConfigError, match=r"max_length 24 is above the 16 positions of .*changed"):
        evaluate_folder(tiny.model, against=other, data=str(tiny.data))


def test_models_that_cannot_be_compared(tiny, changed, tmp_path, monkeypatch):
    other = changed(lambda arrays: arrays)
    config = json.loads((other / "config.json").read_text())
    config["mlprune"]["task"]["task"] = "sst2"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"changed cannot be compared: their task is 'demo' and 'sst2'"):
        evaluate_folder(tiny.model, against=other, data=str(tiny.data))
    headless = changed(lambda arrays: {k: v for k, v in arrays.items() if not k.startswith("classifier.")})
    monkeypatch.setattr(evaluation, "evaluate_split", None)  # it is told before the first model answers
    with pytest.raises(ModelError, match="changed has no trained head"):
        evaluate_folder(tiny.model, against=headless, data=str(tiny.data))
    with pytest.raises(DataError, match=r"no folder '.*absent'"):
        evaluate_folder(tiny.model, against=tmp_path / "absent", data=str(tiny.data))
