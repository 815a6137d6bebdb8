"""Block-CSC: a matrix of which only some blocks are stored, column of blocks by column of blocks.

A ``[d_in, d_out]`` matrix in the orientation of a Flax kernel (``y = x @ w``) is divided into blocks of
``block_in x block_out``. Stored blocks lie in ``values`` one after the other: first those of the first column of
blocks from top to bottom, then those of the second. ``indices[s]`` is the row of blocks that block ``s`` stands in;
the blocks of column ``j`` are ``offsets[j] .. offsets[j + 1]``. Columns may be empty.

Example, 2x2 blocks of a 4x6 matrix (letters are blocks, dots are zero)::

        a . b            values  = [a, c, b]
        . . .      ->    indices = [0, 2, 0]        (block row of a, c, b)
        c . .            offsets = [0, 2, 2, 3]     (column 1 is empty)

``values`` may be longer than ``offsets[-1]``: padding blocks are zero with index 0, so that matrices of one shape and
about one density have arrays of one size and share a compiled kernel (`pad_blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from pallas_kernels.errors import KernelError

BlockShape = tuple[int, int]

BLOCK_SIDES = (16, 32, 64, 128)
"""Block sides that the kernels take; smaller blocks run as masked dense weights."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which blocks are stored, known when a function is traced: what the `xla` implementation unrolls.

    Attributes:
        indices: row of blocks of each stored block, without padding.
        offsets: where each column of blocks begins, and the number of stored blocks last.
    """

    indices: tuple[int, ...]
    offsets: tuple[int, ...]

    @cached_property
    def _key(self) -> tuple[bytes, bytes]:
        return np.asarray(self.indices, np.int32).tobytes(), np.asarray(self.offsets, np.int32).tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def column(self, j: int) -> tuple[int, ...]:
        """Rows of blocks that are stored in column ``j``, ascending."""
        return self.indices[self.offsets[j] : self.offsets[j + 1]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "indices", "offsets"),
    meta_fields=("shape", "pattern"),
)
@dataclass(frozen=True)
class BlockSparse:
    """A block-CSC matrix as a pytree: three arrays, and static facts about them. Build it with `from_dense`.

    Attributes:
        values: stored blocks, ``[n, block_in, block_out]``.
        indices: row of blocks of each, int32 ``[n]``, ascending within a column.
        offsets: where each column of blocks begins, int32 ``[d_out / block_out + 1]``.
        shape: ``(d_in, d_out)``.
        pattern: the same indices and offsets as static data; ``None`` after `without_pattern`, as matrices that share
            one trace (`jax.lax.scan` over layers) must have it.
    """

    values: Any  # arrays, tracers, or whatever a pytree transformation puts there
    indices: Any
    offsets: Any
    shape: tuple[int, int]
    pattern: Pattern | None

    @property
    def block_shape(self) -> BlockShape:
        """``(block_in, block_out)``."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        block_in, block_out = self.block_shape
        return self.shape[0] // block_in, self.shape[1] // block_out

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return self.values.dtype

    def without_pattern(self) -> BlockSparse:
        """The same matrix with its pattern in the arrays alone; the `xla` implementation needs it static."""
        return replace(self, pattern=None)

    def astype(self, dtype: Any) -> BlockSparse:
        """The same matrix with values of another dtype."""
        return replace(self, values=self.values.astype(dtype))


def from_dense(
    weight: Shaped[Array | np.ndarray, "..."],
    mask: Shaped[Array | np.ndarray, "..."] | None = None,
    block_shape: BlockShape | None = None,
) -> BlockSparse:
    """Pack a matrix; runs on the host, outside jit.

    Args:
        weight: ``[d_in, d_out]``.
        mask: True for the blocks to store, one entry per block; its shape gives the block shape. What lies in a block
            that is not stored is dropped, zero or not.
        block_shape: ``(block_in, block_out)``, instead of a mask: stores every block that is not all zero.

    Returns:
        The packed matrix, values bit for bit those of ``weight``, without padding.

    Raises:
        KernelError: blocks that do not divide the matrix, a side that is not one of `BLOCK_SIDES`, values that are not
            floating point or that jax would round, or neither or both of ``mask`` and ``block_shape``.
    """
    dense = np.asarray(weight)
    if (mask is None) == (block_shape is None):
        raise KernelError("from_dense takes a mask or a block_shape, and not both")
    if not jnp.issubdtype(dense.dtype, jnp.floating):
        raise KernelError(f"a block-sparse matrix holds floating point values, got {dense.dtype}")
    if jax.dtypes.canonicalize_dtype(dense.dtype) != dense.dtype:
        raise KernelError(f"jax would round {dense.dtype} values here: convert them first, to float32 or less")
    if mask is None:
        assert block_shape is not None
        blocks = _split(dense, block_shape)
        keep = np.any(blocks != 0, axis=(2, 3))
    else:
        keep = np.asarray(mask)
        if keep.dtype != bool:
            raise KernelError(f"a block mask is bool, True = stored, got {keep.dtype}")
        blocks = _split(dense, _implied_block(dense.shape, keep.shape))
    columns, rows = np.nonzero(keep.T)
    offsets = np.concatenate([[0], np.cumsum(keep.sum(0))]).astype(np.int32)
    indices = rows.astype(np.int32)
    pattern = Pattern(tuple(indices.tolist()), tuple(offsets.tolist()))
    arrays = (jnp.asarray(blocks[rows, columns]), jnp.asarray(indices), jnp.asarray(offsets))
    return BlockSparse(*arrays, (dense.shape[0], dense.shape[1]), pattern)


def from_parts(values: Any, indices: Any, offsets: Any, shape: tuple[int, int]) -> BlockSparse:
    """A matrix from the arrays of the format, checked; ``values`` may hold padding blocks at its end.

    Raises:
        KernelError: arrays that are no block-CSC matrix of that shape: what is wrong, and where.
    """
    values, indices, offsets = np.asarray(values), np.asarray(indices), np.asarray(offsets)
    if values.ndim != 3 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise KernelError(f"values must be floating point [n, block_in, block_out], got {values.dtype} {values.shape}")
    rows, columns = check_blocks(shape, values.shape[1:])
    for name, array, size in (("indices", indices, len(values)), ("offsets", offsets, columns + 1)):
        if array.shape != (size,) or not np.issubdtype(array.dtype, np.integer):
            raise KernelError(f"{name} must be {size} integers, got {array.dtype} {array.shape}")
    if offsets[0] != 0 or np.any(np.diff(offsets) < 0) or offsets[-1] > len(values):
        raise KernelError(f"offsets must rise from 0 to at most {len(values)} blocks, got {offsets}")
    stored = indices[: offsets[-1]]
    if np.any(indices < 0) or np.any(indices >= rows):
        at = int(np.flatnonzero((indices < 0) | (indices >= rows))[0])
        raise KernelError(f"indices[{at}] is {indices[at]}: the matrix has {rows} rows of blocks")
    starts = np.isin(np.arange(1, len(stored)), offsets)
    if np.any((np.diff(stored) <= 0) & ~starts):
        at = int(np.flatnonzero((np.diff(stored) <= 0) & ~starts)[0]) + 1
        raise KernelError(f"indices[{at}] does not rise within its column: a block is stored twice or out of order")
    if np.any(values[offsets[-1] :]) or np.any(indices[offsets[-1] :]):
        raise KernelError(f"padding blocks (from {offsets[-1]} on) must be zero with index 0")
    pattern = Pattern(tuple(stored.tolist()), tuple(offsets.tolist()))
    arrays = (jnp.asarray(values), jnp.asarray(indices, jnp.int32), jnp.asarray(offsets, jnp.int32))
    return BlockSparse(*arrays, (shape[0], shape[1]), pattern)


def to_dense(matrix: BlockSparse) -> Shaped[Array, "D_in D_out"]:
    """The dense matrix, zeros where nothing is stored, bit for bit; works under jit and is differentiable."""
    rows, columns = matrix.grid
    block_in, block_out = matrix.block_shape
    stored = jnp.arange(len(matrix.indices))
    column = jnp.searchsorted(matrix.offsets, stored, side="right") - 1  # padding gets one past the last: dropped
    blocks = jnp.zeros((rows, columns, block_in, block_out), matrix.dtype)
    blocks = blocks.at[matrix.indices, column].set(matrix.values, mode="drop")
    return blocks.transpose(0, 2, 1, 3).reshape(matrix.shape)


def block_mask(matrix: BlockSparse) -> Bool[np.ndarray, "n_in n_out"]:
    """True for the stored blocks; needs concrete arrays or a pattern."""
    offsets = np.asarray(matrix.pattern.offsets if matrix.pattern else matrix.offsets)
    indices = np.asarray(matrix.pattern.indices if matrix.pattern else matrix.indices, np.int32)[: offsets[-1]]
    mask = np.zeros(matrix.grid, bool)
    mask[indices, np.repeat(np.arange(matrix.grid[1]), np.diff(offsets))] = True
    return mask


def density(matrix: BlockSparse) -> float:
    """Stored blocks over all blocks; needs concrete arrays or a pattern."""
    return float(block_mask(matrix).mean())


def concat_columns(matrices: Sequence[BlockSparse]) -> BlockSparse:
    """Matrices side by side as one, ``[d_in, sum of d_out]``: one product for Q, K and V.

    Raises:
        KernelError: input sizes, block shapes or dtypes that differ.
    """
    kinds = {(m.shape[0], m.block_shape, jnp.dtype(m.dtype).name) for m in matrices}
    if len(kinds) != 1:
        raise KernelError(f"matrices to join need one input size, block shape and dtype, got {sorted(kinds)}")
    mask = np.concatenate([block_mask(m) for m in matrices], axis=1)
    return from_dense(np.concatenate([np.asarray(to_dense(m)) for m in matrices], axis=1), mask)


def bucket_size(blocks: int) -> int:
    """The number of blocks to pad ``blocks`` to: a multiple of 8, less than 8 or an eighth above, few to be shared."""
    if blocks <= 8:
        return 8
    step = 1 << max((blocks - 1).bit_length() - 4, 3)
    return -(-blocks // step) * step


def pad_blocks(matrix: BlockSparse, blocks: int | None = None) -> BlockSparse:
    """The same matrix with zero blocks at the end of ``values``, up to ``blocks`` or `bucket_size`.

    Raises:
        KernelError: more blocks are stored than that.
    """
    missing = (bucket_size(len(matrix.indices)) if blocks is None else blocks) - len(matrix.indices)
    if missing < 0:
        raise KernelError(f"cannot pad {len(matrix.indices)} blocks to {blocks}")
    values = jnp.pad(matrix.values, ((0, missing), (0, 0), (0, 0)))
    return replace(matrix, values=values, indices=jnp.pad(matrix.indices, (0, missing)))


def check_blocks(shape: tuple[int, ...], block_shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of blocks of a matrix.

    Raises:
        KernelError: a shape that is no matrix, a side that no kernel takes, or blocks that do not divide it.
    """
    if len(shape) != 2 or len(block_shape) != 2 or min(shape) < 1:
        raise KernelError(f"expected a matrix and a pair of block sides, got {tuple(shape)} and {tuple(block_shape)}")
    if any(side not in BLOCK_SIDES for side in block_shape):
        raise KernelError(f"block sides must be one of {BLOCK_SIDES}, got {block_shape[0]}x{block_shape[1]}")
    if shape[0] % block_shape[0] or shape[1] % block_shape[1]:
        raise KernelError(
            f"blocks of {block_shape[0]}x{block_shape[1]} do not divide a matrix of {shape[0]}x{shape[1]} (in x out)"
        )
    return shape[0] // block_shape[0], shape[1] // block_shape[1]


def _split(dense: np.ndarray, block_shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = check_blocks(dense.shape, block_shape)
    return dense.reshape(rows, block_shape[0], columns, block_shape[1]).transpose(0, 2, 1, 3)


def _implied_block(shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> tuple[int, ...]:
    pairs = len(shape) == len(mask_shape) == 2
    if not pairs or 0 in mask_shape or any(s % m for s, m in zip(shape, mask_shape, strict=True)):
        raise KernelError(f"a block mask of shape {mask_shape} does not divide a matrix of shape {tuple(shape)}")
    return tuple(s // m for s, m in zip(shape, mask_shape, strict=True))
