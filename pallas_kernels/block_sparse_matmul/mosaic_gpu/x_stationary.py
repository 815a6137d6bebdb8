"""X-stationary: a panel of tokens with all its features stays in shared memory; the stored blocks stream past it.

Each thread block holds ``x[rows, d_in]`` and walks over a run of block columns. One warpgroup fetches stored blocks,
which lie one after the other in ``values`` whatever their column, in strips of several; the others multiply. X is read
once for each run of columns, so the design wants a panel that fits (``d_in`` up to 768 at 128 rows) and many tokens.
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
from pallas_kernels.block_sparse_matmul.mosaic_gpu.epilogue_gpu import CHUNK, load_residual, store_tile
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiles import WARPGROUP_ROWS, operand_transforms, transforms
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiling import PRODUCER_REGISTERS


def product(
    call: Call, offsets: Array, indices: Array, x: Array, values: Array, bias: Array | None, residual: Array | None
) -> Array:
    """The product on operands that are padded to whole tiles and strips; see `mosaic_gpu.matmul`."""
    tiling, (block_in, block_out), dtype = call.tiling, call.block_shape, call.dtype
    layout = operand_transforms(call.block_shape, dtype)
    chunk = min(block_out, CHUNK)
    kernel = plgpu.kernel(
        partial(_body, call),
        out_type=jax.ShapeDtypeStruct((call.tokens, call.shape[1]), dtype),
        scratch_types=[
            plgpu.SMEM((call.grid[0], tiling.rows, block_in), dtype, transforms=layout),
            plgpu.SMEM((tiling.stages, tiling.strip, block_in, block_out), dtype, transforms=layout),
            plgpu.SMEM((tiling.consumers, WARPGROUP_ROWS, chunk), dtype, transforms=transforms(chunk, dtype)),
            plgpu.Barrier(num_arrivals=call.grid[0]),
            plgpu.Barrier(num_barriers=tiling.stages),
            plgpu.Barrier(num_arrivals=tiling.consumers, num_barriers=tiling.stages),
        ],
        grid=(call.row_tiles, tiling.splits),
        grid_names=("tile", "split"),
        num_threads=tiling.consumers + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **call.kernel_options,
    )
    return kernel(offsets, indices, x, values, bias, residual)


def _body(
    call: Call,
    offsets: Any,
    indices: Any,
    x: Any,
    values: Any,
    bias: Any,
    residual: Any,
    out: Any,
    panel: Any,
    ring: Any,
    staging: Any,
    panel_full: Any,
    full: Any,
    empty: Any,
) -> None:
    tiling, columns = call.tiling, call.grid[1]
    tile, split, warpgroup = lax.axis_index("tile"), lax.axis_index("split"), lax.axis_index("warpgroup")
    # Runs of columns need not be of one length, so any number of them may be split among any number of blocks.
    first_column = lax.div(split * columns, tiling.splits)
    last_column = lax.div((split + 1) * columns, tiling.splits)
    first, last = offsets[first_column], offsets[last_column]

    @pl.when(warpgroup == tiling.consumers)
    def _produce() -> None:
        plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
        _fetch(call, x, values, panel, ring, panel_full, full, empty, tile, first, last)

    @pl.when(warpgroup < tiling.consumers)
    def _consume() -> None:
        plgpu.set_max_registers(tiling.consumer_registers, action="increase")
        plgpu.barrier_wait(panel_full)
        row = warpgroup * WARPGROUP_ROWS
        out_row = tile * tiling.rows + row
        my_staging = staging.at[warpgroup]

        def column_step(column: Any, _: None) -> None:
            width = call.block_shape[1]
            added = load_residual(call, residual, out_row, column * width, (WARPGROUP_ROWS, width))

            def multiply(acc: Any) -> Array:
                bounds = (offsets[column], offsets[column + 1], first)
                _multiply_column(call, acc, indices, panel, ring, full, empty, row, bounds)
                return acc[...]

            acc = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((WARPGROUP_ROWS, width), jnp.float32))
            store_tile(call, acc, bias, added, out, my_staging, out_row, column * width)

        lax.fori_loop(first_column, last_column, column_step, None)

        @pl.when(last > first)
        def _release() -> None:  # each strip is released by the one that follows it, and none follows this one
            plgpu.barrier_arrive(empty.at[_slot(call, first, last - 1)])

        plgpu.wait_smem_to_gmem(0)


def _slot(call: Call, first: Any, block: Any) -> Any:
    """Where in the ring a block's strip lies: strips are counted from the one that holds the run's first block."""
    strip = call.tiling.strip
    return lax.rem(lax.div(block, strip) - lax.div(first, strip), call.tiling.stages)


def _fetch(
    call: Call,
    x: Any,
    values: Any,
    panel: Any,
    ring: Any,
    panel_full: Any,
    full: Any,
    empty: Any,
    tile: Any,
    first: Any,
    last: Any,
) -> None:
    """The producer: the panel, then every strip that holds one of the blocks ``first .. last``."""
    tiling, block_in = call.tiling, call.block_shape[0]
    for k in range(call.grid[0]):
        source = x.at[pl.ds(tile * tiling.rows, tiling.rows), pl.ds(k * block_in, block_in)]
        plgpu.copy_gmem_to_smem(source, panel.at[k], panel_full)
    begin = lax.div(first, tiling.strip)
    strips = jnp.where(last > first, lax.div(last + (tiling.strip - 1), tiling.strip) - begin, 0)

    def copy(i: Any, _: None) -> None:
        slot = lax.rem(i, tiling.stages)

        @pl.when(i >= tiling.stages)
        def _() -> None:
            plgpu.barrier_wait(empty.at[slot])

        source = values.at[pl.ds((begin + i) * tiling.strip, tiling.strip)]
        plgpu.copy_gmem_to_smem(source, ring.at[slot], full.at[slot])

    def drain(i: Any, _: None) -> None:
        plgpu.barrier_wait(empty.at[lax.rem(i, tiling.stages)])

    lax.fori_loop(0, strips, copy, None)
    # A thread block may not end with arrivals that nobody has waited for.
    lax.fori_loop(jnp.maximum(strips - tiling.stages, 0), strips, drain, None)


def _multiply_column(
    call: Call, acc: Any, indices: Any, panel: Any, ring: Any, full: Any, empty: Any, row: Any, bounds: Any
) -> None:
    """``acc += panel[:, k] @ block`` over the stored blocks of one column."""
    strip, stages = call.tiling.strip, call.tiling.stages
    begin, end, first = bounds

    def step(block: Any, k: Any) -> Any:
        slot, inside = _slot(call, first, block), lax.rem(block, strip)
        enters = (inside == 0) | (block == first)

        @pl.when(enters)
        def _() -> None:
            plgpu.barrier_wait(full.at[slot])

        plgpu.wgmma(acc, panel.at[k, pl.ds(row, WARPGROUP_ROWS)], ring.at[slot, inside])

        @pl.when(enters & (block > first))
        def _() -> None:
            plgpu.wgmma_wait(1)  # all products but the one just begun: those of the strip before have read it
            plgpu.barrier_arrive(empty.at[lax.rem(slot + (stages - 1), stages)])

        return indices[jnp.minimum(block + 1, indices.shape[0] - 1)]  # while this product runs

    lax.fori_loop(begin, end, step, indices[jnp.minimum(begin, indices.shape[0] - 1)])
