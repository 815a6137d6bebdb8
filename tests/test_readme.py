"""The README's Python examples, extracted and executed, so that they cannot rot."""

import inspect
import re
from pathlib import Path
from unittest.mock import MagicMock

import jax
import pytest

import mlprune_jax

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def execute(source: str) -> dict:
    names: dict = {"__name__": "readme"}
    # A user's program has JAX's own promotion; optax's Adam needs it.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(source, "README.md", "exec"), names)
    return names


def test_there_are_two_examples():
    assert len(EXAMPLES) == 2


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
    execute(EXAMPLES[0])
    assert list(plans[0]["stages"]) == ["dense", "heads_rows", "blocks"]
    assert plans[0]["stages"]["blocks"]["density"] == 0.3
    assert len(evaluated) == 1


@pytest.mark.slow
def test_ones_own_loop_prunes_and_shrinks():
    done = execute(EXAMPLES[1])
    assert 0.4 < float(done["state"][0].density) < 0.52
    masked = mlprune_jax.apply_masks(done["trained"]["params"], done["masks"])
    expected = jax.jit(done["model"].apply)({"params": masked}, *done["batch"]).logits
    assert jax.numpy.allclose(done["logits"], expected, atol=1e-5)
    removed = {"heads", "attention_output", "ffn", "ffn_output"}
    assert any(getattr(layer, part) for layer in done["small_config"].layers for part in removed)
