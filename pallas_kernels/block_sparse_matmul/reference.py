"""The obvious implementation: float32, highest precision, one dense product. The others are compared with it."""

from __future__ import annotations

import jax
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
    """See `block_sparse_matmul`; whatever the dtypes, everything is computed in float32."""
    weight = to_dense(w).astype(jnp.float32)
    product = jnp.matmul(x.astype(jnp.float32), weight, precision=jax.lax.Precision.HIGHEST)
    return finish(product, bias, activation, residual, x.dtype)
