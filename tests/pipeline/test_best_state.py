"""With `evaluate_steps`, a training gives the state that measured best."""

import json

import numpy as np
import pytest

from mlprune_jax import pipeline
from mlprune_jax.models.pretrained import load_pretrained


def test_a_training_gives_the_state_that_measured_best(tiny, tmp_path, monkeypatch):
    measured, score = [], pipeline.stages.score

    def falling(context, model):
        """The first evaluation tells the highest metric."""
        measured.append(model.params)
        return score(context, model) | {"accuracy": 1.0 / len(measured)}

    monkeypatch.setattr("mlprune_jax.pipeline.stages.score", falling)
    off = {"enabled": False}
    config = tiny.config(evaluate_steps=4, prune={"heads_rows": off, "blocks": off})
    pipeline.run(config, tmp_path / "run", quiet=True)
    first, last = (np.asarray(params["head"]["kernel"]) for params in measured[:2])
    assert not np.array_equal(first, last)
    final = load_pretrained(tmp_path / "run" / "final", kind="classification", num_labels=2)
    np.testing.assert_array_equal(final.params["head"]["kernel"], first)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = {line["step"]: line["dev_accuracy"] for line in lines if "dev_accuracy" in line}
    assert told == {4: 1.0, 8: pytest.approx(0.5)}
