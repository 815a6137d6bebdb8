"""A parameter tree, with or without tile masks, as the parameters of the serving forward."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.inference.check import check_masks
from mlprune_jax.inference.forward import LayerParams, Linear, ModelParams, Norm
from mlprune_jax.inference.pack import pack_params
from mlprune_jax.inference.simplify import Masked, simplify
from mlprune_jax.pruning.granularity import layer_path
from pallas_kernels import BlockSparse, concat_columns, pad_blocks
from pallas_kernels.device import platform

Tree = dict[str, Any]


def assemble(
    params: Tree, masks: Tree | None, config: ModelConfig, dtype: str, *, pack: bool = True
) -> tuple[ModelParams, ModelConfig]:
    """Simplify, pack, join Q, K and V, and cast.

    Args:
        params: a task model's parameters, zero wherever a tile is masked.
        masks: its tile masks, or ``None``.
        config: its geometry.
        dtype: of matrices; biases, norms and embeddings stay float32.
        pack: store the kept tiles alone; false leaves zeros where tiles are masked.

    Returns:
        The serving parameters and the geometry they have after simplification.

    Raises:
        IntegrityError: masks that do not fit the parameters; see `check_masks`.
    """
    if masks is not None:
        check_masks(params, masks, config)
        params, masks, config = simplify(Masked(params, masks, config))
        params = pack_params(params, masks) if pack else params
    bert = params["bert"]
    embeddings = bert["embeddings"]
    word, position, token_type = (
        jnp.asarray(embeddings[name]["embedding"]) for name in ("word", "position", "token_type")
    )
    whole = ModelParams(
        word=word,
        position=position,
        token_type=token_type,
        norm=_norm(embeddings),
        layers=tuple(_layer(bert["encoder"][layer_path(i)[-1]], dtype) for i in range(config.num_hidden_layers)),
        pooler=_linear(bert["pooler"], dtype) if "pooler" in bert else None,
        head=_linear(params["head"], dtype),
    )
    return whole, config


def _layer(layer: Tree, dtype: str) -> LayerParams:
    attention, ffn = layer["attention"], layer["ffn"]
    return LayerParams(
        qkv=_joined([attention[name] for name in ("query", "key", "value")], dtype),
        attention_output=_linear(attention["output"], dtype),
        attention_norm=_norm(attention),
        ffn=_linear(ffn["intermediate"], dtype),
        ffn_output=_linear(ffn["output"], dtype),
        ffn_norm=_norm(ffn),
    )


def _joined(matrices: list[Tree], dtype: str) -> Linear:
    """Matrices of one input side by side: one product instead of three."""
    kernels = [matrix["kernel"] for matrix in matrices]
    packed = [kernel for kernel in kernels if isinstance(kernel, BlockSparse)]
    weight = concat_columns(packed) if len(packed) == len(kernels) else np.concatenate(kernels, axis=1)
    return _cast(weight, np.concatenate([matrix["bias"] for matrix in matrices]), dtype)


def _linear(matrix: Tree, dtype: str) -> Linear:
    return _cast(matrix["kernel"], matrix["bias"], dtype)


def _cast(weight: Any, bias: Any, dtype: str) -> Linear:
    if not isinstance(weight, BlockSparse):
        weight = jnp.asarray(weight)
    elif platform() == "gpu":
        weight = pad_blocks(weight)  # layers of one size share a kernel, and no call copies values into whole strips
    return Linear(weight.astype(dtype), jnp.asarray(bias, jnp.float32))


def _norm(part: Tree) -> Norm:
    return Norm(jnp.asarray(part["norm"]["scale"]), jnp.asarray(part["norm"]["bias"]))
