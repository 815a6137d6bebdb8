"""The product with the matrix spread out and zeros where nothing is stored: always there, at a dense matrix's cost."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.block_sparse_matmul.epilogue import Activation, finish
from pallas_kernels.formats import BlockSparse, to_dense


def matmul(
    x: Float[Array, "M D_in"],
    w: BlockSparse,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
) -> Float[Array, "M D_out"]:
    """See `block_sparse_matmul`; operands in their own dtype, float32 accumulation.

    The spreading is part of every call: a caller that runs dense again and again spreads once (`to_dense`) and uses
    the platform's own product, `multiply`.
    """
    return multiply(x, to_dense(w), bias, residual, activation)


def multiply(
    x: Float[Array, "M D_in"],
    weight: Float[Array, "D_in D_out"],
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
) -> Float[Array, "M D_out"]:
    """The same with a matrix that was spread before: what sparse products are set beside."""
    product = jnp.matmul(x, weight, preferred_element_type=jnp.float32)
    return finish(product, bias, activation, residual, x.dtype)
