"""The Python examples of the README and of docs/own-loop.md, extracted and executed, so that they cannot rot."""

import inspect
from unittest.mock import MagicMock

import jax
import pytest

import mlprune_jax
from mlprune_jax.models.tasks import init_params
from mlprune_jax.pruning.density import density
from tests.documents import examples, execute
from tests.masks import count_kept

WHOLE_RUN, THRESHOLDS = examples("README.md")
SOFT_SCORES, _ = examples("docs/own-loop.md")  # the other: tests/pipeline


def test_the_whole_run_is_accepted(tmp_path, monkeypatch):
    """Planned, not trained: five compiled steps take a minute, and tests/pipeline trains such a run."""
    monkeypatch.chdir(tmp_path)
    plans, evaluated = [], []
    run, evaluate = inspect.signature(mlprune_jax.run), inspect.signature(mlprune_jax.evaluate_folder)

    def planned(*args, **kwargs):
        plans.append(mlprune_jax.plan(run.bind(*args, **kwargs).arguments["config"]))
        return MagicMock()

    monkeypatch.setattr(mlprune_jax, "run", planned, raising=False)
    monkeypatch.setattr(
        mlprune_jax, "evaluate_folder", lambda *a, **k: evaluated.append(evaluate.bind(*a, **k)), raising=False
    )
    execute(WHOLE_RUN)
    assert list(plans[0]["stages"]) == ["dense", "heads_rows", "blocks"]
    assert plans[0]["stages"]["blocks"]["density"] == 0.3
    assert len(evaluated) == 1


@pytest.mark.slow
def test_ones_own_loop_prunes_and_shrinks():
    done = execute(THRESHOLDS)
    assert 0.4 < float(done["state"][0].density) < 0.52
    agrees_with_masked(done, done["small_params"])


def agrees_with_masked(done, small):
    masked = mlprune_jax.apply_masks(done["trained"]["params"], done["masks"])
    model = mlprune_jax.TaskModel(done["small_config"], "classification", 2)
    expected = jax.jit(done["model"].apply)({"params": masked}, *done["batch"]).logits
    logits = jax.jit(model.apply)({"params": small}, *done["batch"]).logits
    assert jax.numpy.allclose(logits, expected, atol=1e-5)
    removed = {"heads", "attention_output", "ffn", "ffn_output"}
    assert any(getattr(layer, part) for layer in done["small_config"].layers for part in removed)


@pytest.mark.slow
def test_the_default_method_takes_a_folder_to_a_smaller_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = mlprune_jax.ModelConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    params = init_params(mlprune_jax.TaskModel(config, "classification", 2), seed=1)
    mlprune_jax.save_pretrained("models/bert", config, params, kind="classification")
    done = execute(SOFT_SCORES)
    assert float(done["state"][0].density) == pytest.approx(0.4, abs=0.05)  # the penalty brought it there,
    assert 0.39 < density(done["cost"], count_kept(done["groups"], done["masks"])) <= 0.4  # the cut below
    stored = mlprune_jax.load_pretrained("models/small", num_labels=2, kind="classification")
    assert stored.config == done["small_config"]
    agrees_with_masked(done, stored.params)
