"""A small BERT whose sizes take 16x16 tiles, with random weights, biases and norms, and random tile masks."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from typer.testing import CliRunner

from mlprune_jax.cli import app
from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.inference.simplify import Masked
from mlprune_jax.models.names import expected_shapes
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.pruning.granularity import block, find_groups
from mlprune_jax.pruning.masks import apply_masks, spread

# The second layer is shrunk: 2 of 4 heads, 32 of 64 FFN units, rows of both outputs.
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
    layers=(
        LayerShape(),
        LayerShape(
            heads=(1, 3),
            attention_output=tuple(range(5, 37)),
            ffn=tuple(range(0, 64, 2)),
            ffn_output=tuple(range(16, 64)),
        ),
    ),
)
TILE = (16, 16)


def random_params(config: ModelConfig, kind: Any, num_labels: int) -> dict[str, Any]:
    """Fresh biases and norms are trivial; random ones show a forgotten cut."""
    rng = np.random.default_rng(1)

    def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        return np.float32(path[-1] == "scale") + 0.3 * rng.standard_normal(shape, np.float32)

    shapes = expected_shapes(config, num_labels=num_labels, kind=kind)
    return unflatten_dict({path: draw(path, shape) for path, shape in sorted(shapes.items())})


def random_masks(config: ModelConfig, kept: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    groups = find_groups(config, (block(TILE),))
    return spread(groups, {g.name: rng.random(g.units) < kept for g in groups})


def masked(
    kind: Any = "classification",
    num_labels: int = 3,
    *,
    config: ModelConfig = CONFIG,
    kept: float = 0.5,
    seed: int = 0,
) -> Masked:
    masks = random_masks(config, kept, seed)
    params = apply_masks(random_params(config, kind, num_labels), masks)
    return Masked(jax.tree.map(np.asarray, params), masks, config)


def batch(rows: int = 3, length: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, lengths of which the last is full, and segment ids."""
    rng = np.random.default_rng(2)
    ids = rng.integers(1, CONFIG.vocab_size, (rows, length), np.int32)
    lengths = np.linspace(2, length, rows).astype(np.int32)
    return ids, lengths, rng.integers(0, 2, (rows, length), np.int32)


def plain_logits(config: ModelConfig, params: dict[str, Any], kind: Any, inputs: Any, dtype: Any = jnp.float32) -> Any:
    """What the training model, which knows nothing of packing, answers."""
    model = TaskModel(config, kind, len(params["head"]["bias"]), dtype)
    return np.asarray(jax.jit(model.apply)({"params": params}, *with_mask(inputs)).logits)


def with_mask(inputs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch as the training model takes it: ids, attention mask, segment ids."""
    ids, lengths, types = inputs
    mask = np.arange(ids.shape[1])[None] < lengths[:, None]
    return jnp.asarray(ids), jnp.asarray(mask, jnp.int32), jnp.asarray(types)


def close(found: Any, wanted: Any, *, depth: int = 64) -> None:
    """Equal up to float32 rounding of sums as long as the model's widest, through all its layers."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=scale * 2**-23 * 16 * depth**0.5)


@pytest.fixture(scope="session")
def tile_model() -> Masked:
    return masked()


@pytest.fixture
def command(monkeypatch):
    """Runs the command line; environment variables that it sets are undone."""
    monkeypatch.setattr(sys, "argv", ["mlprune"])
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "1")
    return lambda *args, **options: CliRunner().invoke(app, [str(arg) for arg in args], **options)
