"""Masked parameters to packed ones, and a linen layer that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlprune_jax.errors import ConfigError
from mlprune_jax.models.bert import product
from mlprune_jax.pruning.masks import with_masks
from pallas_kernels import BLOCK_SIDES, BlockSparse, block_sparse_matmul, from_dense


def pack_params(params: Mapping[str, Any], masks: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with every tile-masked kernel in block-CSC form; everything else is passed on.

    Args:
        params: nested dict of parameters.
        masks: bool tile masks of kernels, as `mlprune_jax.apply_masks` takes them.

    Returns:
        The same tree. Kernels whose tiles the kernels do not take (sides other than 16, 32, 64, 128) stay dense, with
        zeros in the masked tiles.

    Raises:
        ConfigError: a mask for which there is no parameter, or that is no tile mask of it.
    """
    return with_masks(_pack, params, masks)


def _pack(name: str, weight: Any, mask: Any) -> BlockSparse | np.ndarray:
    weight, mask = np.asarray(weight), np.asarray(mask)
    if weight.ndim != 2 or mask.ndim != 2 or any(s % m for s, m in zip(weight.shape, mask.shape, strict=True)):
        raise ConfigError(
            f"{name}: a mask of shape {mask.shape} is no tile mask of a parameter of shape {weight.shape}"
        )
    sides = [s // m for s, m in zip(weight.shape, mask.shape, strict=True)]
    if any(side not in BLOCK_SIDES for side in sides):
        return weight * mask.repeat(sides[0], 0).repeat(sides[1], 1)
    return from_dense(weight, mask)


class PackedDense(nn.Module):
    """`mlprune_jax.models.bert.Dense` over packed parameters: ``Bert(config, dense=PackedDense)`` runs and trains them.

    Stored blocks get gradients, the others stay out of the model: fine-tuning after pruning (docs/inference.md).
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = None  # a packed model is loaded, never initialised

    @nn.compact
    def __call__(self, x: Float[Array, "*B D_in"]) -> Float[Array, "*B D_out"]:
        kernel, bias = self.get_variable("params", "kernel"), jnp.asarray(self.get_variable("params", "bias"))
        if isinstance(kernel, BlockSparse):
            packed = kernel.astype(self.dtype)
            return block_sparse_matmul(x.astype(self.dtype), packed, bias=bias, implementation="xla")
        y: Array = product(x, jnp.asarray(kernel), self.dtype)
        return (y + bias).astype(self.dtype)
