"""The products that tests and benches share: BERT-base's matrices, and random packed ones from a seed."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockShape, BlockSparse, from_dense, pad_blocks

MATRICES: dict[str, tuple[int, int]] = {
    "QKV": (768, 2304),
    "O": (768, 768),
    "FC1": (768, 3072),
    "FC2": (3072, 768),
}
"""BERT-base's matrices, in x out; Q, K and V side by side as one."""

TINY: dict[str, tuple[int, int]] = {"tiny": (96, 128)}
"""For trying a script itself."""

ACTIVATIONS: dict[str, Activation] = {"FC1": "gelu"}
"""What follows a matrix inside a model, where anything but its bias does."""

SQUARE_BLOCKS: tuple[BlockShape, ...] = ((32, 32), (64, 64), (16, 16))
MIXED_BLOCKS: tuple[BlockShape, ...] = ((16, 64), (64, 32), (32, 64), (128, 64), (64, 128), (128, 128))
DENSITIES = (0.1, 0.2, 0.3, 0.5)
TOKENS = (128, 512, 4096, 16384)

MaskKind = Literal["random", "empty column", "single block", "full column", "all empty"]
MASK_KINDS: tuple[MaskKind, ...] = ("random", "empty column", "single block", "full column", "all empty")


def make_mask(
    grid: tuple[int, int], density: float, *, kind: MaskKind = "random", seed: int = 0
) -> Bool[np.ndarray, "rows columns"]:
    """Which blocks are stored.

    Args:
        grid: rows and columns of blocks.
        density: share of stored blocks; exactly that many blocks (rounded), at random places.
        kind: "empty column" and "full column" change the second column of a random mask (the first, if it is the only
            one); "single block" and "all empty" store one and none.
        seed: of the places.

    Raises:
        KernelError: a density outside 0 .. 1.
    """
    if not 0 <= density <= 1:
        raise KernelError(f"density must be between 0 and 1, got {density}")
    rng = np.random.default_rng(seed)
    blocks = grid[0] * grid[1]
    stored = {"single block": 1, "all empty": 0}.get(kind, round(density * blocks))
    mask = np.zeros(blocks, bool)
    mask[rng.permutation(blocks)[:stored]] = True
    mask = mask.reshape(grid)
    if kind in ("empty column", "full column"):
        mask[:, min(1, grid[1] - 1)] = kind == "full column"
    return mask


def make_matrix(
    shape: tuple[int, int],
    block_shape: BlockShape,
    density: float,
    dtype: Any,
    *,
    kind: MaskKind = "random",
    seed: int = 0,
    padded: bool = True,
) -> BlockSparse:
    """A packed matrix of normally distributed values, scaled so that a product's outputs are about 1.

    Args:
        shape: ``(d_in, d_out)``.
        block_shape: ``(block_in, block_out)``.
        density: share of stored blocks.
        dtype: of the values.
        kind: see `make_mask`.
        seed: of mask and values.
        padded: whether `pad_blocks` is applied, as the kernels like it.
    """
    mask = make_mask((shape[0] // block_shape[0], shape[1] // block_shape[1]), density, kind=kind, seed=seed)
    scale = max(density * shape[0], 1.0) ** -0.5
    weight = np.random.default_rng(seed + 1).standard_normal(shape, np.float32) * np.float32(scale)
    matrix = from_dense(weight, mask).astype(dtype)
    return pad_blocks(matrix) if padded else matrix


def make_operands(
    tokens: int, shape: tuple[int, int], dtype: Any, *, bias: bool, residual: bool, seed: int = 0
) -> tuple[Shaped[Array, "M D_in"], Shaped[Array, "D_out"] | None, Shaped[Array, "M D_out"] | None]:
    """Random ``x``, ``bias`` and ``residual``, the latter two where asked for."""
    rng = np.random.default_rng(seed + 2)
    x = jnp.asarray(rng.standard_normal((tokens, shape[0]), np.float32), dtype)
    b = jnp.asarray(rng.standard_normal(shape[1], np.float32), dtype) if bias else None
    r = jnp.asarray(rng.standard_normal((tokens, shape[1]), np.float32), dtype) if residual else None
    return x, b, r


def tolerance(matrix: BlockSparse, dtype: Any) -> float:
    """How far a product may lie from `reference`, relative to the largest output (at least 1): derived, not tuned.

    Both sum exact products of the same operands in float32, in different orders: rounding errors of ``kept K`` terms
    walk at random, and a factor of 4 covers the largest of all outputs. Casting to ``dtype`` rounds each of the two
    by half a unit in the last place, so their results differ by at most one. The rational erf adds 4.2e-7.

    Returns:
        ``eps(dtype) + 4 * eps(float32) * sqrt(kept K) + 1e-6``.
    """
    kept = int(np.diff(np.asarray(matrix.offsets)).max(initial=0)) * matrix.block_shape[0]
    return float(jnp.finfo(dtype).eps) + 4 * float(jnp.finfo(jnp.float32).eps) * max(kept, 1) ** 0.5 + 1e-6
