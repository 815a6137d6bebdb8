"""The product unrolled over a pattern known at trace time: plain XLA, for the CPU and any other platform.

A column of blocks is a narrow dense product: the features that its blocks read, gathered side by side, times its blocks
stacked. Two things make that pay on a CPU. Tokens go through in chunks, so that the gathered features are still in the
cache when they are multiplied; and narrow columns are multiplied several at once, with zeros where one of them has no
block, as a product of 16 columns costs nearly as much as one of 32.

The blocks are arguments of the compiled function, only where they stand is compiled in. Everything is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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


@partial(jax.tree_util.register_dataclass, data_fields=("weights",), meta_fields=("rows", "block_in", "shape"))
@dataclass(frozen=True)
class Unrolled:
    """A matrix as it is multiplied with, one dense part for each product.

    `matmul` cuts the parts out of the stored blocks in every call. A server makes them once (`unroll`) and passes them
    instead: cut out inside a compiled forward, they are copies of the whole model at each call.

    Attributes:
        weights: ``[rows * block_in, columns]`` each, side by side the columns of the matrix.
        rows: the rows of blocks that each part reads.
        block_in: features of a row of blocks.
        shape: ``(d_in, d_out)``.
    """

    weights: Any  # a tuple of arrays, or whatever a pytree transformation puts there
    rows: tuple[Rows, ...]
    block_in: int
    shape: tuple[int, int]


def matmul(
    x: Float[Array, "M D_in"],
    w: BlockSparse,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
) -> Float[Array, "M D_out"]:
    """See `block_sparse_matmul`; operands in their own dtype, float32 accumulation. ``w`` needs its pattern."""
    return multiply(x, _cut(w, w.values), bias, residual, activation)


def unroll(w: BlockSparse) -> Unrolled:
    """The parts of a matrix with a pattern, made on the host."""
    parts = _cut(w, np.asarray(w.values))
    return replace(parts, weights=tuple(map(jnp.asarray, parts.weights)))


def multiply(
    x: Float[Array, "M D_in"],
    w: Unrolled,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
) -> Float[Array, "M D_out"]:
    """`matmul` with a matrix that is unrolled already; arguments as there."""

    def of_chunk(operands: Operands) -> Array:
        tokens, added = operands
        return finish(_product(tokens, w), bias, activation, added, x.dtype)

    return _in_chunks(of_chunk, (x, residual))


def _cut(w: BlockSparse, values: Array | np.ndarray) -> Unrolled:
    assert w.pattern is not None  # the caller has checked
    columns = w.grid[1]
    width = max(1, LEAST_WIDTH // w.block_shape[1], -(-columns // MOST_PRODUCTS))
    parts = [_part(values, w.pattern, range(j, min(j + width, columns))) for j in range(0, columns, width)]
    return Unrolled(tuple(weight for _, weight in parts), tuple(rows for rows, _ in parts), w.block_shape[0], w.shape)


def _part(values: Array | np.ndarray, pattern: Pattern, columns: range) -> tuple[Rows, Array | np.ndarray]:
    block_in, block_out = values.shape[1:]
    if len(columns) == 1:
        rows = pattern.column(columns[0])
        blocks = values[pattern.offsets[columns[0]] : pattern.offsets[columns[0] + 1]]
        return rows, blocks.reshape(-1, block_out)
    rows = tuple(sorted({row for j in columns for row in pattern.column(j)}))
    if not rows:
        return rows, values[:0].reshape(0, len(columns) * block_out)
    slots = np.full((len(rows), len(columns)), len(values), np.int32)  # past the end: a block of zeros
    for at, j in enumerate(columns):
        stored = range(pattern.offsets[j], pattern.offsets[j + 1])
        slots[np.searchsorted(rows, pattern.column(j)), at] = stored
    return rows, _take(values, slots).transpose(0, 2, 1, 3).reshape(len(rows) * block_in, -1)


def _take(values: Array | np.ndarray, slots: np.ndarray) -> Array | np.ndarray:
    if not isinstance(values, np.ndarray):
        return values.at[slots].get(mode="fill", fill_value=0)
    return np.concatenate([values, np.zeros_like(values[:1])])[slots]


def _product(x: Float[Array, "C D_in"], w: Unrolled) -> Float[Array, "C D_out"]:
    # Cut up once, behind a barrier: fused into the joins, every cut is made again, slower and in more code to compile.
    cuts = jax.lax.optimization_barrier(jnp.split(x, w.shape[0] // w.block_in, axis=1))
    products = [
        # Nothing stored: a sum of no products, which is zero.
        jnp.matmul(
            jnp.concatenate([cuts[row] for row in rows] or [x[:, :0]], axis=1),
            weight,
            preferred_element_type=jnp.float32,
        )
        for rows, weight in zip(w.rows, w.weights, strict=True)
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
