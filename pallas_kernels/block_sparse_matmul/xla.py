"""The product unrolled over a pattern known at trace time: plain XLA, for the CPU and any other platform.

Two ways to take a matrix apart into narrow dense products, and the one with fewer of them is taken:

- by rows of blocks: the features of a row times its blocks side by side; each column of the result is the sum of what
  the rows have for it. No feature is copied twice, and the products are wide.
- by columns: the features that a column's blocks read, gathered side by side, times its blocks stacked.

Tokens go through in chunks, so that what lies between two steps is still in the cache at the second; and narrow rows or
columns are multiplied several at once, with zeros where one of them has no block, as a product of 16 columns costs
nearly as much as one of 32.

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
from pallas_kernels.formats import BlockShape, BlockSparse

CHUNK = 128
"""Tokens multiplied at once."""

LEAST_WIDTH = 32
"""Rows or columns of the matrix in one product, at least."""

MOST_PRODUCTS = 96
"""Products that one matrix is unrolled into, about; each costs compile time."""

Blocks = tuple[int, ...]
Operands = tuple[Array, Array | None]
Map = Callable[[Callable[[Operands], Array], Operands], Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weights",),
    meta_fields=("across", "by_rows", "block_shape", "shape"),
)
@dataclass(frozen=True)
class Unrolled:
    """A matrix as it is multiplied with, one dense part for each product.

    `matmul` cuts the parts out of the stored blocks in every call. A server makes them once (`unroll`) and passes them
    instead: cut out inside a compiled forward, they are copies of the whole model at each call.

    Attributes:
        weights: ``[features, columns]`` of each part; together they cover all rows of blocks, or all columns, in turn.
        across: of each part, the columns of blocks that it adds to, or the rows that it reads.
        by_rows: whether the parts are rows of blocks; else columns.
        block_shape: ``(block_in, block_out)``.
        shape: ``(d_in, d_out)``.
    """

    weights: Any  # a tuple of arrays, or whatever a pytree transformation puts there
    across: tuple[Blocks, ...]
    by_rows: bool
    block_shape: BlockShape
    shape: tuple[int, int]


def matmul(
    x: Float[Array, "M D_in"],
    w: BlockSparse,
    bias: Float[Array, "D_out"] | None,
    residual: Float[Array, "M D_out"] | None,
    activation: Activation | None,
) -> Float[Array, "M D_out"]:
    """See `block_sparse_matmul`; operands in their own dtype, float32 accumulation. ``w`` needs its pattern."""
    return _multiply(x, _cut(w, w.values), bias, residual, activation, _map_chunks)


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
    """`matmul` with a matrix that is unrolled already, for serving; arguments as there."""
    return _multiply(x, w, bias, residual, activation, _map_chunks_in_place)


def _multiply(
    x: Array, w: Unrolled, bias: Array | None, residual: Array | None, activation: Activation | None, over_chunks: Map
) -> Array:
    def of_chunk(operands: Operands) -> Array:
        tokens, added = operands
        product = _by_rows(tokens, w) if w.by_rows else _by_columns(tokens, w)
        return finish(_apart(product), bias, activation, added, x.dtype)

    return over_chunks(of_chunk, (x, residual))


def _cut(w: BlockSparse, values: Array | np.ndarray) -> Unrolled:
    assert w.pattern is not None  # the caller has checked
    array = np if isinstance(values, np.ndarray) else jnp
    blocks = array.concatenate([values, array.zeros((1, *w.block_shape), values.dtype)])
    slots = np.full(w.grid, len(values), np.int32)  # of each place in `blocks`; where nothing is stored, that of zeros
    for j in range(w.grid[1]):
        slots[list(w.pattern.column(j)), j] = range(w.pattern.offsets[j], w.pattern.offsets[j + 1])
    by_rows = w.grid[0] <= w.grid[1]
    lines = slots if by_rows else slots.T
    width = max(1, LEAST_WIDTH // w.block_shape[0 if by_rows else 1], -(-len(lines) // MOST_PRODUCTS))
    weights, across = [], []
    for band in (lines[i : i + width] for i in range(0, len(lines), width)):
        stored = np.flatnonzero((band < len(values)).any(axis=0))
        part = band[:, stored]
        weights.append(_joined(blocks, part if by_rows else part.T))
        across.append(tuple(stored.tolist()))
    return Unrolled(tuple(weights), tuple(across), by_rows, w.block_shape, w.shape)


def _joined(blocks: Array | np.ndarray, slots: np.ndarray) -> Array | np.ndarray:
    """Blocks side by side and stacked, as ``slots`` has them, as one matrix."""
    (rows, columns), (block_in, block_out) = slots.shape, blocks.shape[1:]
    return blocks[slots].transpose(0, 2, 1, 3).reshape(rows * block_in, columns * block_out)


def _by_rows(x: Float[Array, "C D_in"], w: Unrolled) -> Float[Array, "C D_out"]:
    block_out = w.block_shape[1]
    ends = np.cumsum([weight.shape[0] for weight in w.weights])[:-1].tolist()
    cuts = _apart(jnp.split(x, ends, axis=1))
    products = _apart([_multiplied(cut, weight) for cut, weight in zip(cuts, w.weights, strict=True)])
    terms: list[list[Array]] = [[] for _ in range(w.shape[1] // block_out)]
    for columns, product in zip(w.across, products, strict=True):
        for at, column in enumerate(columns):
            terms[column].append(product[:, at * block_out : (at + 1) * block_out])
    nothing = jnp.zeros((len(x), block_out), jnp.float32)
    return jnp.concatenate([sum(found[1:], found[0]) if found else nothing for found in terms], axis=1)


def _by_columns(x: Float[Array, "C D_in"], w: Unrolled) -> Float[Array, "C D_out"]:
    cuts = _apart(jnp.split(x, w.shape[0] // w.block_shape[0], axis=1))
    # Nothing stored: a sum of no products, which is zero.
    gathered = [jnp.concatenate([cuts[row] for row in rows] or [x[:, :0]], axis=1) for rows in w.across]
    return jnp.concatenate(list(map(_multiplied, gathered, w.weights)), axis=1)


def _multiplied(x: Array, weight: Array) -> Array:
    return jnp.matmul(x, weight, preferred_element_type=jnp.float32)


def _apart(arrays: Any) -> Any:
    """Behind a barrier: fused into what reads them, pieces are made again for each reader, slower and in more code."""
    return jax.lax.optimization_barrier(arrays)


def _chunks(rows: int) -> tuple[int, int]:
    """How many chunks of about `CHUNK` rows, equally long but for rounding, and how long."""
    count = max(1, -(-rows // CHUNK))
    return count, -(-rows // count)


def _map_chunks(function: Callable[[Operands], Array], operands: Operands) -> Array:
    """``function`` of chunk after chunk; at most a row per chunk is padding."""
    rows = operands[0].shape[0]
    count, length = _chunks(rows)
    if count == 1:
        return function(operands)

    def split(array: Array) -> Array:
        padded = jnp.pad(array, ((0, count * length - rows), (0, 0)))
        return padded.reshape(count, length, -1)

    result = jax.lax.map(function, jax.tree.map(split, operands))
    return result.reshape(count * length, -1)[:rows]


def _map_chunks_in_place(function: Callable[[Operands], Array], operands: Operands) -> Array:
    """`_map_chunks` into memory that starts as a value of the operand, and is overwritten everywhere.

    Where rows do not divide, the last chunk begins earlier and repeats some: without padding nothing is copied.

    A map starts from zeros. They depend on nothing, so XLA makes those of all layers of a model first of all, and they
    lie in memory at once: 106 MB of BERT-base's at 512 tokens, for 16. Backward, a map is the faster one: a product of
    4096 tokens took 47 ms with it and 67 with this, forward and backward (2 cores, 25 Nov 2026).
    """
    rows = operands[0].shape[0]
    count, length = _chunks(rows)
    if count == 1:
        return function(operands)

    def chunk(first: Array | int) -> Operands:
        return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, first, length), operands)

    def step(number: Array, done: Array) -> Array:
        first = jnp.minimum(number * length, rows - length)
        return jax.lax.dynamic_update_slice_in_dim(done, function(chunk(first)), first, 0)

    like = jax.eval_shape(function, jax.eval_shape(chunk, 0))
    start = jnp.full((rows, *like.shape[1:]), jax.lax.stop_gradient(operands[0][0, 0]), like.dtype)
    return jax.lax.fori_loop(0, count, step, start)
