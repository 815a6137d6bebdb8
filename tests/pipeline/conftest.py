"""A tiny BERT and a tiny demo task on disk, and settings that take them through the pipeline in seconds."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.models.pretrained import save_pretrained
from mlprune_jax.models.tasks import TaskModel, init_params

GEOMETRY = ModelConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the library handles it, nothing is tidied up."""


class Tiny(NamedTuple):
    """Where the model and the data lie, and plain settings for `RunConfig`."""

    model: Path
    data: Path
    settings: dict[str, Any]

    def config(self, **overrides: Any) -> RunConfig:
        """The settings, the given top-level ones replaced."""
        return RunConfig.model_validate({**self.settings, **overrides})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """The model has a fresh head; its folder says which task it is for, as those of a run do."""
    root = tmp_path_factory.mktemp("tiny")
    data = write_demo(root / "data", train_size=64, dev_size=24)
    model = write_demo(root / "model", train_size=1, dev_size=1)
    params = jax.tree.map(np.asarray, init_params(TaskModel(GEOMETRY, "classification", 2), 0))
    task = {"task": "demo", "max_length": 24, "length_buckets": [24]}
    extra = {"mlprune": {"task": task}}
    save_pretrained(model, GEOMETRY, params, kind="classification", labels=("0", "1"), extra_config=extra)
    stage = {"batch_size": 8, "epochs": 1, "learning_rate": 1e-3}  # few steps: tests compile much and train little
    settings = {
        **task,
        "model": str(model),
        "data": str(data),
        "eval_batch_size": 24,
        "dense": stage,
        "prune": {
            "density": 0.4,
            # Fisher's order, which every run would compile once more, is that of blocks alone.
            "heads_rows": {**stage, "recover": 0.0, "score_init": "constant"},
            "blocks": {**stage, "shape": "8x8"},
        },
    }
    return Tiny(model, data, settings)
