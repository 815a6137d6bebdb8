"""Streaming: one output tile at a time, tokens x one column of blocks; X and W tiles both come through a pipeline.

The smallest design, and the one that takes every block shape and any ``d_in``. A tile of X is read again for each
stored block below it, so the L2 cache sets its pace: it pays at low density and for few tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.block_sparse_matmul.mosaic_gpu.call import Call
from pallas_kernels.block_sparse_matmul.mosaic_gpu.epilogue_gpu import load_residual, store_tile
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiles import operand_transforms, transforms


def product(
    call: Call, offsets: Array, indices: Array, x: Array, values: Array, bias: Array | None, residual: Array | None
) -> Array:
    """The product on operands that are padded to whole tiles; see `mosaic_gpu.matmul`."""
    rows, block_out = call.tiling.rows, call.block_shape[1]
    kernel = plgpu.kernel(
        partial(_body, call),
        out_type=jax.ShapeDtypeStruct((call.tokens, call.shape[1]), call.dtype),
        scratch_types=[plgpu.SMEM((rows, block_out), call.dtype, transforms=transforms(block_out, call.dtype))],
        grid=(call.ctas,),
        grid_names=("cta",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **call.kernel_options,
    )
    return kernel(offsets, indices, x, values, bias, residual)


def _body(
    call: Call, offsets: Any, indices: Any, x: Any, values: Any, bias: Any, residual: Any, out: Any, staging: Any
) -> None:
    rows, (block_in, block_out) = call.tiling.rows, call.block_shape
    layout = operand_transforms(call.block_shape, call.dtype)

    # Neighbouring thread blocks take neighbouring tiles of tokens of one column: they read the same blocks of W.
    @plgpu.nd_loop((call.row_tiles * call.grid[1],), collective_axes="cta")
    def _tile(loop: Any) -> None:
        column, tile = lax.div(loop.index[0], call.row_tiles), lax.rem(loop.index[0], call.row_tiles)
        start = offsets[column]
        added = load_residual(call, residual, tile * rows, column * block_out, (rows, block_out))

        def multiply(acc: Any) -> Array:
            def step(_: Any, x_tile: Any, block: Any) -> None:
                plgpu.wgmma(acc, x_tile, block)
                # The pipeline refills the tiles of the step before (delay_release=1), whose product must have ended.
                plgpu.wgmma_wait(1)

            plgpu.emit_pipeline(
                step,
                grid=(offsets[column + 1] - start,),
                in_specs=[
                    plgpu.BlockSpec(
                        (rows, block_in), lambda s: (tile, indices[start + s]), transforms=layout, delay_release=1
                    ),
                    plgpu.BlockSpec(
                        (None, block_in, block_out), lambda s: (start + s, 0, 0), transforms=layout, delay_release=1
                    ),
                ],
                max_concurrent_steps=call.tiling.stages,
            )(x, values)
            return acc[...]

        acc = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((rows, block_out), jnp.float32))
        store_tile(call, acc, bias, added, out, staging, tile * rows, column * block_out)

    plgpu.wait_smem_to_gmem(0)
