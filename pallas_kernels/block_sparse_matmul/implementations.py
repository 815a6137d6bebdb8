"""The implementations by name, and which of them a device and a matrix can have."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from pallas_kernels.block_sparse_matmul.triton import load
from pallas_kernels.device import compute_capability, platform
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockSparse

Implementation = Literal["reference", "dense", "xla", "mosaic_gpu", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

SPARSE: tuple[Implementation, ...] = ("mosaic_gpu", "triton", "xla")
"""Those that skip what is not stored."""

HOPPER = 9  # the major compute capability that has wgmma, no earlier nor later one
AMPERE = 8


def check_implementation(implementation: Implementation, w: BlockSparse) -> None:
    """Refuse an implementation that the default device, or this matrix, cannot have.

    Raises:
        KernelError: with the reason.
    """
    if implementation == "xla" and w.pattern is None:
        raise KernelError("implementation xla unrolls the pattern, which this matrix carries in its arrays alone")
    if implementation in ("mosaic_gpu", "triton"):
        _check_gpu(implementation)
    if implementation == "mosaic_gpu" and jax.config.read("jax_enable_x64"):
        raise KernelError("implementation mosaic_gpu cannot be traced under jax_enable_x64; run without it, or dense")
    if implementation == "mosaic_gpu" and w.dtype == jnp.float32:
        raise KernelError("implementation mosaic_gpu takes bfloat16 and float16; run float32 with dense")


def _check_gpu(implementation: Implementation) -> None:
    found = compute_capability()
    if implementation == "mosaic_gpu":
        fits, wanted = found is not None and found[0] == HOPPER, "9.0 (Hopper)"
    else:
        fits, wanted = found is not None and found[0] >= AMPERE, "8.0 or newer"
    if not fits:
        has = f"compute capability {found[0]}.{found[1]}" if found else f"platform {platform()}"
        raise KernelError(
            f"implementation {implementation} needs an NVIDIA GPU of compute capability {wanted}; the default device "
            f"has {has}"
        )


def runnable(w: BlockSparse) -> tuple[Implementation, ...]:
    """The sparse implementations that the default device and this matrix can have, and whose packages are there."""
    return tuple(name for name in SPARSE if _runs(name, w))


def _runs(implementation: Implementation, w: BlockSparse) -> bool:
    try:
        check_implementation(implementation, w)
    except KernelError:
        return False
    return implementation != "triton" or _triton_loads()


@cache
def _triton_loads() -> bool:
    """Whether jax-triton is there and fits the jax and triton that are."""
    try:
        load()
    except KernelError:
        return False
    return True
