"""A stage may train without dropout; the model keeps its own rates."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlprune_jax import pipeline

RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@pytest.fixture(scope="module")
def still(tiny, tmp_path_factory):
    """The tiny model, whose own rates of dropout are 0."""
    folder = tmp_path_factory.mktemp("still") / "model"
    shutil.copytree(tiny.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict.fromkeys(RATES, 0.0)))
    return folder


def test_stages_without_dropout_train_as_a_model_that_has_none(tiny, still, tmp_path):
    """Dense training, learning and recovery; a teacher drops nothing in any case."""

    def trained(model, name, **dropout):
        train = {**tiny.settings["dense"], **dropout}
        prune = {"density": 0.4, "heads_rows": {**train, "recover": 0.5}, "blocks": {"enabled": False}}
        pipeline.run(tiny.config(model=str(model), dense=train, prune=prune), tmp_path / name, quiet=True)
        return tmp_path / name / "final"

    found = trained(tiny.model, "found", dropout=0.0)
    assert same(found, trained(still, "wanted"))
    assert not same(found, trained(tiny.model, "own"))
    assert {name: json.loads((found / "config.json").read_text())[name] for name in RATES} == dict.fromkeys(RATES, 0.1)


def same(one, other):
    """Whether two folders hold the same arrays, bit for bit."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
