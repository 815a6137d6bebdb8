"""Pallas kernels for Hopper GPUs (Mosaic GPU: wgmma and TMA), in three designs; bf16 and fp16, float32 sums."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.mosaic_gpu.call import Call
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiles import pad_rows, pad_values
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiling import DESIGNS, Design, Tiling, check, plan
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockSparse

__all__ = ["DESIGNS", "Design", "Tiling", "matmul", "multiprocessors", "plan"]

DTYPES = ("bfloat16", "float16")
HOPPER_SMS = 132  # of an H100 SXM or H200, where the default device cannot be asked
INTERPRETED_SMS = 2  # the interpreter pays for each thread block


def matmul(
    x: Float[Array, "M D_in"],
    w: BlockSparse,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
    *,
    interpret: Any = None,
    design: Design | None = None,
    tiling: Tiling | None = None,
) -> Float[Array, "M D_out"]:
    """See `block_sparse_matmul`; no gradient.

    Which blocks are stored is read from the arrays while the kernel runs: matrices of one shape with equally many
    stored blocks (`pad_blocks`) share one compiled kernel, and so do layers under `jax.lax.scan`.

    Args:
        x: bf16 or fp16.
        w: packed matrix in the dtype of ``x``; best padded by `pad_blocks`, or its values may be copied at each call.
        bias: any floating dtype.
        residual: cast to the dtype of ``x`` first.
        activation: after the bias.
        interpret: parameters of Pallas' GPU interpreter, to run without a GPU.
        design: one of `DESIGNS`; ``None`` picks one by `plan`'s rule. One that was asked for is never replaced.
        tiling: instead of the design's own.

    Raises:
        KernelError: float32 operands, or a design or tiling that cannot take the matrix.
    """
    if jnp.dtype(x.dtype).name not in DTYPES:
        raise KernelError(
            f"implementation mosaic_gpu takes {' and '.join(DTYPES)}, got {x.dtype}: on Hopper's matrix units float32 "
            "operands would be rounded to TF32 and stored transposed; use implementation dense"
        )
    if design is not None and design not in DESIGNS:
        raise KernelError(f"design must be one of {', '.join(DESIGNS)}, got {design!r}")
    sms = INTERPRETED_SMS if interpret is not None else multiprocessors()
    if tiling is None:
        tiling = plan(design, len(x), w.shape, w.block_shape, len(w.values), sms)
    check(tiling, w.shape, w.block_shape)
    padded = pad_rows(x, tiling.rows)
    added = None if residual is None else pad_rows(residual.astype(x.dtype), tiling.rows)
    tiles = len(padded) // tiling.rows * w.grid[1]
    call = Call(
        tokens=len(padded),
        shape=w.shape,
        block_shape=w.block_shape,
        dtype=jnp.dtype(x.dtype).name,
        activation=activation,
        tiling=tiling,
        ctas=min(tiles, sms * tiling.blocks_per_sm),
        interpret=interpret,
    )
    return _product(call, w.offsets, w.indices, padded, w.values, bias, added)[: len(x)]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(
    call: Call,
    offsets: Int[Array, " columns"],
    indices: Int[Array, " n"],
    x: Shaped[Array, "M D_in"],
    values: Shaped[Array, "n b c"],
    bias: Shaped[Array, " D_out"] | None,
    residual: Shaped[Array, "M D_out"] | None,
) -> Shaped[Array, "M D_out"]:
    return _compiled(call, offsets, indices, x, values, bias, residual)


@_product.defjvp
def _refuse_gradient(call: Call, primals: Any, tangents: Any) -> Any:
    raise KernelError(
        "implementation mosaic_gpu has no gradient; train with implementation='xla', which has one, and keep this one "
        "for inference"
    )


@partial(jax.jit, static_argnums=0)
def _compiled(
    call: Call,
    offsets: Int[Array, " columns"],
    indices: Int[Array, " n"],
    x: Shaped[Array, "M D_in"],
    values: Shaped[Array, "n b c"],
    bias: Shaped[Array, " D_out"] | None,
    residual: Shaped[Array, "M D_out"] | None,
) -> Shaped[Array, "M D_out"]:
    """The kernel of a design, compiled once for each `Call` and set of array sizes."""
    padded = pad_values(values, call.tiling.strip)
    missing = len(padded) - len(indices)
    design = import_module(f"pallas_kernels.block_sparse_matmul.mosaic_gpu.{call.tiling.design}")
    return design.product(call, offsets, jnp.pad(indices, (0, missing)), x, padded, bias, residual)


def multiprocessors() -> int:
    """Of the default device, or of a Hopper GPU where it is none."""
    device = jax.devices()[0]
    return int(getattr(device, "core_count", HOPPER_SMS)) if device.platform == "gpu" else HOPPER_SMS
