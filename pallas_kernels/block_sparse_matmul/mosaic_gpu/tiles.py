"""Tiles in shared memory: the layouts that wgmma reads and TMA writes, and rows padded to whole tiles."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Shaped

WARPGROUP_ROWS = 64
"""Rows of one wgmma, and so of what one warpgroup accumulates at a time."""


def transforms(inner: int, dtype: Any) -> tuple[Any, ...]:
    """Tiling and swizzle of a tile whose rows are multiples of ``inner`` elements."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(inner * itemsize * 8)
    return plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle)


def operand_transforms(block_shape: tuple[int, int], dtype: Any) -> tuple[Any, ...]:
    """One layout for both operands: wgmma wants equal swizzles, and the smaller block side is what both can have."""
    return transforms(min(block_shape), dtype)


def pad_rows(x: Shaped[Array, "M D"], multiple: int) -> Shaped[Array, "M_padded D"]:
    """Zero rows at the end, up to a whole number of tiles."""
    missing = -len(x) % multiple
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x


def pad_values(values: Shaped[Array, "n b c"], multiple: int) -> Shaped[Array, "n_padded b c"]:
    """Zero blocks at the end, up to whole strips and at least one: a TMA descriptor has no empty axis.

    A copy of the matrix, which a caller avoids by packing to a bucket (`pad_blocks`), always whole strips.
    """
    missing = -len(values) % multiple if len(values) else multiple
    return jnp.pad(values, ((0, missing), (0, 0), (0, 0))) if missing else values
