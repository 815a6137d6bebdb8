"""A warpgroup's accumulator through bias, activation and residual to the output: one way for every design."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels._compat import load_registers
from pallas_kernels.block_sparse_matmul.epilogue import activate, erf
from pallas_kernels.block_sparse_matmul.mosaic_gpu.call import Call

CHUNK = 32
"""Columns that are staged in shared memory at a time, where the X panel leaves no room for a whole block column."""


def load_residual(call: Call, residual: Any, row: Any, column: Any, shape: tuple[int, int]) -> Array | None:
    """The residual of one output tile into registers; before the products where there is room: they hide the wait."""
    if residual is None:
        return None
    index = (pl.ds(row, shape[0]), pl.ds(column, shape[1]))
    return load_registers(residual, index, plgpu.Layout.WGMMA, interpreted=call.interpreted)


def store_tile(
    call: Call, acc: Array, bias: Any, residual: Array | None, out: Any, staging: Any, row: Any, column: Any
) -> None:
    """``activation(acc + bias) + residual`` of one tile, cast, and written by TMA chunk by chunk through ``staging``.

    Args:
        call: the product.
        acc: float32 ``[rows, columns]`` in registers.
        bias: ``[d_out]`` in global memory, or none.
        residual: ``[rows, columns]`` in registers, or none.
        out: ``[tokens, d_out]`` in global memory.
        staging: ``[rows, chunk]`` in shared memory, this warpgroup's alone.
        row: first row of the tile in the output.
        column: first column.
    """
    rows, width = acc.shape
    chunk = staging.shape[-1]
    for start in range(0, width, chunk):
        part = slice(start, start + chunk)
        y = acc[:, part] if chunk < width else acc
        if bias is not None:
            layout = plgpu.Layout.WGMMA.reduce(0)
            b = load_registers(bias, (pl.ds(column + start, chunk),), layout, interpreted=call.interpreted)
            y = y + lax.broadcast_in_dim(b.astype(jnp.float32), (rows, chunk), (1,))
        y = activate(y, call.activation, erf=erf)
        if residual is not None:
            added = residual[:, part] if chunk < width else residual
            y = y + added.astype(jnp.float32)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the chunk before has left the staging tile
        staging[...] = y.astype(call.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staging, out.at[pl.ds(row, rows), pl.ds(column + start, chunk)])
