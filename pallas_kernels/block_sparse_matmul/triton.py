"""The product as a Triton kernel called through jax-triton: for Ampere, and a cross-check on Hopper.

jax-triton and triton are imported when the product is asked for, never before: without a GPU build of jaxlib their
import fails.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockSparse, pad_blocks

STAGES = 4  # blocks on their way from memory while one is multiplied
WARPS = 4


def matmul(
    x: Float[Array, "M D_in"],
    w: BlockSparse,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
    *,
    compute_capability: int | None = None,
) -> Float[Array, "M D_out"]:
    """See `block_sparse_matmul`; float32, bf16 and fp16, without gradient.

    Which blocks are stored is read from the arrays, so that matrices of one shape and size share a compiled kernel.

    Args:
        x, w, bias, residual, activation: as there.
        compute_capability: of the GPU to compile for, 90 for Hopper; ``None`` asks the device.

    Raises:
        KernelError: jax-triton is missing, or does not fit the versions of jax and triton that are there.
    """
    stored = pad_blocks(w, 1) if len(w.indices) == 0 else w  # a kernel's operand cannot be empty
    return _product(activation, compute_capability, x, stored.offsets, stored.indices, stored.values, bias, residual)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _product(
    activation: Activation | None,
    compute_capability: int | None,
    x: Float[Array, "M D_in"],
    offsets: Int[Array, " columns"],
    indices: Int[Array, " n"],
    values: Float[Array, "n b c"],
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
) -> Float[Array, "M D_out"]:
    triton_call, kernel = load()
    tokens, d_in = x.shape
    block_in, block_out = values.shape[1:]
    columns = len(offsets) - 1
    rows = tile_rows(tokens, block_out)
    out = jax.ShapeDtypeStruct((tokens, columns * block_out), x.dtype)
    # The keyword was renamed in jax-triton 0.4.
    out_name = "out_type" if "out_type" in inspect.signature(triton_call).parameters else "out_shape"
    absent = jnp.zeros((1,), x.dtype)
    options = {} if compute_capability is None else {"compute_capability": compute_capability}
    return triton_call(
        x,
        offsets,
        indices,
        values,
        absent if bias is None else bias,
        absent if residual is None else residual,
        kernel=kernel,
        grid=(columns, -(-tokens // rows)),
        num_warps=WARPS,
        num_stages=STAGES,
        TOKENS=tokens,
        D_IN=d_in,
        D_OUT=columns * block_out,
        ROWS=rows,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        ACTIVATION=activation or "",
        **{out_name: out},
        **options,
    )


@_product.defjvp
def _refuse_gradient(activation: Any, compute_capability: Any, primals: Any, tangents: Any) -> Any:
    raise KernelError(
        "implementation triton has no gradient; train with implementation='xla', which has one, and keep this one for "
        "inference"
    )


def tile_rows(tokens: int, block_out: int) -> int:
    """Tokens of one program: 128, fewer where there are fewer, and 64 where a block's columns fill the registers."""
    most = 64 if block_out == 128 else 128
    return min(most, max(16, 1 << (tokens - 1).bit_length()))


def load() -> tuple[Any, Any]:
    """jax-triton's call and the kernel.

    Raises:
        KernelError: jax-triton is missing, or does not fit the versions of jax and triton that are there.
    """
    try:
        from jax_triton import triton_call  # pyright: ignore[reportMissingImports]

        from pallas_kernels.block_sparse_matmul.triton_kernel import product_kernel
    except (ImportError, AttributeError, TypeError) as error:
        raise KernelError(
            f"implementation triton needs jax-triton, and with it a GPU build of jax and a triton it fits: {error}"
        ) from error
    return triton_call, product_kernel
