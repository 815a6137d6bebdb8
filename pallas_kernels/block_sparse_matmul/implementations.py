"""The implementations by name, and which of them a device and a matrix can have."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

import jax.numpy as jnp

from pallas_kernels.device import compute_capability, platform
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockSparse

Implementation = Literal["reference", "dense", "xla", "mosaic_gpu", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

SPARSE: tuple[Implementation, ...] = ("mosaic_gpu", "triton", "xla")
"""Those that skip what is not stored."""

LEAST_CAPABILITY: dict[Implementation, tuple[int, int]] = {"mosaic_gpu": (9, 0), "triton": (8, 0)}


def check_implementation(implementation: Implementation, w: BlockSparse) -> None:
    """Refuse an implementation that the default device, or this matrix, cannot have.

    Raises:
        KernelError: with the reason.
    """
    if implementation == "xla" and w.pattern is None:
        raise KernelError("implementation xla unrolls the pattern, which this matrix carries in its arrays alone")
    if implementation in LEAST_CAPABILITY:
        least = LEAST_CAPABILITY[implementation]
        found = compute_capability()
        if found is None or found < least:
            has = f"compute capability {found[0]}.{found[1]}" if found else f"platform {platform()}"
            raise KernelError(
                f"implementation {implementation} needs an NVIDIA GPU of compute capability {least[0]}.{least[1]} or "
                f"newer; the default device has {has}"
            )
    if implementation == "mosaic_gpu" and w.dtype == jnp.float32:
        raise KernelError("implementation mosaic_gpu takes bfloat16 and float16; run float32 with dense")


def runnable(w: BlockSparse) -> tuple[Implementation, ...]:
    """The sparse implementations that the default device and this matrix can have, and whose packages are there."""
    return tuple(name for name in SPARSE if _runs(name, w))


def _runs(implementation: Implementation, w: BlockSparse) -> bool:
    try:
        check_implementation(implementation, w)
    except KernelError:
        return False
    return implementation != "triton" or find_spec("jax_triton") is not None
