"""The product unrolled over a pattern known at trace time: plain XLA, for the CPU and any other platform.

A column of blocks is a narrow dense product: the features that its blocks read, gathered side by side, times its blocks
stacked. Two things make that pay on a CPU. Tokens go through in chunks, so that the gathered features are still in the
cache when they are multiplied; and narrow columns are multiplied several at once, with zeros where one of them has no
block, as a product of 16 columns costs nearly as much as one of 32.

The blocks are arguments of the compiled function, only where they stand is compiled in. Everything is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.block_sparse_matmul.epilogue import Activation, finish
from pallas_kernels.formats import BlockSparse, Pattern

CHUNK = 128
"""Tokens multiplied at once."""

LEAST_WIDTH = 32
"""Columns of the matrix in one product, at least."""

MOST_PRODUCTS = 96
"""Products that one matrix is unrolled into, about; each costs compile time."""

Rows = tuple[int, ...]
Operands = tuple[Array, Array | None]


def matmul(
    x: Float[Array, "M D_in"],
    w: BlockSparse,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
) -> Float[Array, "M D_out"]:
    """See `block_sparse_matmul`; operands in their own dtype, float32 accumulation. ``w`` needs its pattern."""
    assert w.pattern is not None  # the caller has checked
    parts = _parts(w, w.pattern)

    def of_chunk(operands: Operands) -> Array:
        tokens, added = operands
        return finish(_product(tokens, parts, w), bias, activation, added, x.dtype)

    return _in_chunks(of_chunk, (x, residual))


def _parts(w: BlockSparse, pattern: Pattern) -> list[tuple[Rows, Array]]:
    """Rows of blocks that each product reads, and the matrix it multiplies with."""
    columns = w.grid[1]
    width = max(1, LEAST_WIDTH // w.block_shape[1], -(-columns // MOST_PRODUCTS))
    return [_part(w, pattern, range(j, min(j + width, columns))) for j in range(0, columns, width)]


def _part(w: BlockSparse, pattern: Pattern, columns: range) -> tuple[Rows, Array]:
    block_in, block_out = w.block_shape
    if len(columns) == 1:
        rows = pattern.column(columns[0])
        blocks = w.values[pattern.offsets[columns[0]] : pattern.offsets[columns[0] + 1]]
        return rows, blocks.reshape(-1, block_out)
    rows = tuple(sorted({row for j in columns for row in pattern.column(j)}))
    if not rows:
        return rows, w.values[:0].reshape(0, len(columns) * block_out)
    slots = np.full((len(rows), len(columns)), len(w.indices), np.int32)  # past the end: a block of zeros
    for at, j in enumerate(columns):
        stored = range(pattern.offsets[j], pattern.offsets[j + 1])
        slots[np.searchsorted(rows, pattern.column(j)), at] = stored
    blocks = w.values.at[slots].get(mode="fill", fill_value=0)
    return rows, blocks.transpose(0, 2, 1, 3).reshape(len(rows) * block_in, -1)


def _product(x: Float[Array, "C D_in"], parts: list[tuple[Rows, Array]], w: BlockSparse) -> Float[Array, "C D_out"]:
    # Cut up once, behind a barrier: fused into the joins, every cut is made again, slower and in more code to compile.
    cuts = jax.lax.optimization_barrier(jnp.split(x, w.grid[0], axis=1))
    products = [
        # Nothing stored: a sum of no products, which is zero.
        jnp.matmul(
            jnp.concatenate([cuts[row] for row in rows] or [x[:, :0]], axis=1),
            weight,
            preferred_element_type=jnp.float32,
        )
        for rows, weight in parts
    ]
    return jnp.concatenate(products, axis=1)


def _in_chunks(function: Callable[[Operands], Array], operands: Operands) -> Array:
    """``function`` of chunks of about `CHUNK` rows, equally long; at most a row per chunk is padding."""
    rows = operands[0].shape[0]
    chunks = -(-rows // CHUNK)
    if chunks <= 1:
        return function(operands)
    length = -(-rows // chunks)

    def split(array: Array) -> Array:
        padded = jnp.pad(array, ((0, chunks * length - rows), (0, 0)))
        return padded.reshape(chunks, length, -1)

    result = jax.lax.map(function, jax.tree.map(split, operands))
    return result.reshape(chunks * length, -1)[:rows]
