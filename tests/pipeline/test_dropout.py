"""A stage may train without dropout; the model keeps its own rates."""

import json
import shutil

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

from mlprune_jax import pipeline
from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import TrainSettings

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

    def run(model, name, *, pruned, **dropout):
        train = {**tiny.settings["dense"], **dropout}
        heads_rows = {**train, "recover": 0.5, "enabled": pruned}
        prune = {"density": 0.4, "heads_rows": heads_rows, "blocks": {"enabled": False}}
        pipeline.run(tiny.config(model=str(model), dense=train, prune=prune), tmp_path / name, quiet=True)
        return tmp_path / name

    found = run(tiny.model, "found", pruned=True, dropout=0.0)
    assert same(found / "final", run(still, "wanted", pruned=True) / "final")
    assert not same(found / "stages" / "dense", run(tiny.model, "own", pruned=False) / "final")
    config = json.loads((found / "final" / "config.json").read_text())
    assert {name: config[name] for name in RATES} == dict.fromkeys(RATES, 0.1)


@pytest.mark.parametrize("settings", [TrainSettings, ModelConfig])
def test_a_rate_that_rounds_to_all_is_refused(settings):
    """Found by review: 0.999 of 256 is 256, and what stays was scaled by 256 / 0."""
    rates = [name for name in settings.model_fields if "dropout" in name]
    for name in rates:
        settings(**{name: 0.99})
        with pytest.raises(ValidationError, match=name):
            settings(**{name: 0.999})
    assert rates


def same(one, other):
    """Whether two folders hold the same arrays, bit for bit."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
