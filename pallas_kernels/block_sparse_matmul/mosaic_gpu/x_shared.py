"""X-shared: one output tile of several block columns; a tile of X is read once for all of them.

Both sides walk over the rows of blocks in which at least one of the tile's columns stores something, by merging the
columns' ascending lists of indices: no tables besides the format's own, no read of a block that is not stored. For
matrices whose X panel is too large to stay in shared memory, as FC2's is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
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
    """The product on operands that are padded to whole tiles; see `mosaic_gpu.matmul`."""
    tiling, (block_in, block_out), dtype = call.tiling, call.block_shape, call.dtype
    layout = operand_transforms(call.block_shape, dtype)
    chunk = min(block_out, CHUNK)
    kernel = plgpu.kernel(
        partial(_body, call),
        out_type=jax.ShapeDtypeStruct((call.tokens, call.shape[1]), dtype),
        scratch_types=[
            plgpu.SMEM((tiling.stages, tiling.rows, block_in), dtype, transforms=layout),
            plgpu.SMEM((tiling.stages, tiling.group, block_in, block_out), dtype, transforms=layout),
            plgpu.SMEM((tiling.consumers, WARPGROUP_ROWS, chunk), dtype, transforms=transforms(chunk, dtype)),
            plgpu.Barrier(num_arrivals=tiling.group + 1, num_barriers=tiling.stages),
            plgpu.Barrier(num_arrivals=tiling.consumers, num_barriers=tiling.stages),
        ],
        grid=(call.row_tiles, -(-call.grid[1] // tiling.group)),
        grid_names=("tile", "group"),
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
    x_ring: Any,
    w_ring: Any,
    staging: Any,
    full: Any,
    empty: Any,
) -> None:
    tiling = call.tiling
    tile, warpgroup = lax.axis_index("tile"), lax.axis_index("warpgroup")
    first_column = lax.axis_index("group") * tiling.group

    @pl.when(warpgroup == tiling.consumers)
    def _produce() -> None:
        plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
        steps = _walk(
            call, offsets, indices, first_column, partial(_fetch, call, x, values, x_ring, w_ring, full, empty, tile)
        )

        def drain(i: Any, _: None) -> None:  # no thread block may end with arrivals that nobody has waited for
            plgpu.barrier_wait(empty.at[lax.rem(i, tiling.stages)])

        lax.fori_loop(jnp.maximum(steps - tiling.stages, 0), steps, drain, None)

    @pl.when(warpgroup < tiling.consumers)
    def _consume() -> None:
        plgpu.set_max_registers(tiling.consumer_registers, action="increase")
        row = warpgroup * WARPGROUP_ROWS

        def multiply(*accs: Any) -> list[Array]:
            visit = partial(_multiply, call, accs, x_ring, w_ring, full, empty, row)
            steps = _walk(call, offsets, indices, first_column, visit)

            @pl.when(steps > 0)
            def _() -> None:
                _release(call, empty, steps - 1)

            return [acc[...] for acc in accs]

        width = call.block_shape[1]
        accs = [plgpu.WGMMAAccumulatorRef((WARPGROUP_ROWS, width), jnp.float32)] * tiling.group
        results = pl.run_scoped(multiply, *accs)
        out_row = tile * tiling.rows + row
        for g, acc in enumerate(results):

            @pl.when(first_column + g < call.grid[1])  # the last group may reach past the matrix
            def _store(g: int = g, acc: Array = acc) -> None:
                column = (first_column + g) * width
                added = load_residual(call, residual, out_row, column, (WARPGROUP_ROWS, width))
                store_tile(call, acc, bias, added, out, staging.at[warpgroup], out_row, column)

        plgpu.wait_smem_to_gmem(0)


def _walk(call: Call, offsets: Any, indices: Any, first_column: Any, visit: Callable[..., None]) -> Any:
    """Call ``visit(step, k, positions, hits)`` for each row of blocks in which one of the group's columns has a block.

    Args:
        call: the product.
        offsets: where the columns of blocks begin.
        indices: their rows.
        first_column: of the group.
        visit: told how many rows were visited before, the row of blocks, for each column the place of its next block
            in ``values``, and whether that block lies in this row.

    Returns:
        The number of rows visited.
    """
    rows, columns = call.grid
    # Columns past the matrix get an empty range of the last one's blocks.
    starts = [offsets[jnp.minimum(first_column + g, columns)] for g in range(call.tiling.group)]
    ends = [offsets[jnp.minimum(first_column + g + 1, columns)] for g in range(call.tiling.group)]

    def row_of(position: Any, end: Any) -> Any:
        stored = indices[jnp.minimum(position, indices.shape[0] - 1)]
        return jnp.where(position < end, stored, rows)

    def step(k: Any, carry: Any) -> Any:
        hits = [following == k for following in carry[2]]

        def go() -> Any:
            steps, positions, _ = carry
            visit(steps, k, positions, hits)
            moved = [position + hit.astype(jnp.int32) for position, hit in zip(positions, hits, strict=True)]
            return steps + 1, moved, [row_of(position, end) for position, end in zip(moved, ends, strict=True)]

        return lax.cond(reduce(lax.bitwise_or, hits), go, lambda: carry)

    begin = (jnp.int32(0), starts, [row_of(start, end) for start, end in zip(starts, ends, strict=True)])
    return lax.fori_loop(0, rows, step, begin)[0]


def _fetch(
    call: Call,
    x: Any,
    values: Any,
    x_ring: Any,
    w_ring: Any,
    full: Any,
    empty: Any,
    tile: Any,
    step: Any,
    k: Any,
    positions: list[Any],
    hits: list[Any],
) -> None:
    """The producer's visit: the tile of X, and those blocks that are stored."""
    tiling, block_in = call.tiling, call.block_shape[0]
    slot = lax.rem(step, tiling.stages)

    @pl.when(step >= tiling.stages)
    def _() -> None:
        plgpu.barrier_wait(empty.at[slot])

    source = x.at[pl.ds(tile * tiling.rows, tiling.rows), pl.ds(k * block_in, block_in)]
    plgpu.copy_gmem_to_smem(source, x_ring.at[slot], full.at[slot])
    for g, (position, hit) in enumerate(zip(positions, hits, strict=True)):
        # The barrier counts as many arrivals at every step, so a block that is not stored arrives without a copy.
        lax.cond(
            hit,
            lambda g=g, at=position: plgpu.copy_gmem_to_smem(values.at[at], w_ring.at[slot, g], full.at[slot]),
            lambda: plgpu.barrier_arrive(full.at[slot]),
        )


def _multiply(
    call: Call,
    accs: tuple[Any, ...],
    x_ring: Any,
    w_ring: Any,
    full: Any,
    empty: Any,
    row: Any,
    step: Any,
    k: Any,
    positions: list[Any],
    hits: list[Any],
) -> None:
    """A consumer's visit: the products of the stored blocks."""
    del k, positions
    slot = lax.rem(step, call.tiling.stages)
    plgpu.barrier_wait(full.at[slot])

    # The products of the visit before ran while the next row was looked for, and only now have to be over.
    @pl.when(step > 0)
    def _() -> None:
        _release(call, empty, step - 1)

    for g, hit in enumerate(hits):
        # The machine code holds no wait for a product at the end of such a branch, only a fence at its beginning.
        @pl.when(hit)
        def _(g: int = g) -> None:
            plgpu.wgmma(accs[g], x_ring.at[slot, pl.ds(row, WARPGROUP_ROWS)], w_ring.at[slot, g])


def _release(call: Call, empty: Any, step: Any) -> None:
    """Give a visit's tiles back to the producer, once every product that was begun is over."""
    plgpu.wgmma_wait(0)
    plgpu.barrier_arrive(empty.at[lax.rem(step, call.tiling.stages)])
