"""The way back from `mlprune_jax.pruning.shrink`: what was removed returns as zeros, for whoever needs equal layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.pruning.granularity import layer_path

Kept = Sequence[int] | None


def expand(params: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Put the kept parts of a shrunk model at their places in matrices of the dense size, zeros everywhere else.

    The large model computes what the small one does: a head without values adds nothing, gelu(0) = 0, and rows of O
    and FC2 that were removed add zero into their features.

    Args:
        params: a model's parameters as ``config`` describes them.
        config: its geometry, shrunk or dense.

    Returns:
        Parameters of the dense sizes (numpy, nothing shared with ``params``) and the geometry without ``layers``.
    """
    dense = config.model_copy(update={"layers": ()})
    encoder = dict(params["bert"]["encoder"])
    for i, shape in enumerate(config.layer_shapes):
        name = layer_path(i)[-1]
        encoder[name] = _expand_layer(encoder[name], shape, dense)
    return jax.tree.map(np.array, {**params, "bert": {**params["bert"], "encoder": encoder}}), dense


def _expand_layer(layer: Mapping[str, Any], shape: LayerShape, config: ModelConfig) -> dict[str, Any]:
    hidden, inner = config.hidden_size, config.intermediate_size
    features = _features(shape.heads, config.head_dim)
    attention, ffn = dict(layer["attention"]), dict(layer["ffn"])
    for name in ("query", "key", "value"):
        attention[name] = _put(attention[name], (hidden, hidden), outputs=features)
    attention["output"] = _put(attention["output"], (hidden, hidden), inputs=features, outputs=shape.attention_output)
    ffn["intermediate"] = _put(ffn["intermediate"], (hidden, inner), outputs=shape.ffn)
    ffn["output"] = _put(ffn["output"], (inner, hidden), inputs=shape.ffn, outputs=shape.ffn_output)
    return {**layer, "attention": attention, "ffn": ffn}


def _features(heads: Kept, head_dim: int) -> Kept:
    """Output features of Q, K and V that belong to heads."""
    return None if heads is None else [head * head_dim + k for head in heads for k in range(head_dim)]


def _put(
    matrix: Mapping[str, Any], size: tuple[int, int], *, inputs: Kept = None, outputs: Kept = None
) -> dict[str, np.ndarray]:
    rows = range(size[0]) if inputs is None else inputs
    columns = range(size[1]) if outputs is None else outputs
    kernel, bias = np.zeros(size, matrix["kernel"].dtype), np.zeros(size[1], matrix["bias"].dtype)
    kernel[np.ix_(rows, columns)] = matrix["kernel"]
    bias[np.asarray(columns)] = matrix["bias"]
    return {"kernel": kernel, "bias": bias}
