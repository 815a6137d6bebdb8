"""What differs between the jax versions that the kernels run on (0.10.2 to 0.12), in one place."""

from __future__ import annotations

import inspect
from typing import Any

from jax import Array
from jax.experimental.pallas import mosaic_gpu as plgpu

_parameters = inspect.signature(plgpu.load).parameters
_INDEX_REQUIRED = "idx" in _parameters and _parameters["idx"].default is inspect.Parameter.empty


def load_registers(ref: Any, index: tuple[Any, ...], layout: Any, *, interpreted: bool) -> Array:
    """Part of a reference to global memory as a value in registers of that layout.

    ``plgpu.load`` takes the index itself in jax 0.10 and an indexed reference from 0.11 on; the interpreter has no rule
    for it in any of them, and no layouts either.

    Args:
        ref: the operand in global memory.
        index: one `pl.ds` or integer for each of its axes.
        layout: of the warpgroup's registers, a `plgpu.Layout`.
        interpreted: whether the kernel runs in the interpreter.
    """
    if interpreted:
        return ref[index]
    # Not optimized: one access a register, which is what a fragment of a matrix product has to be filled by.
    if _INDEX_REQUIRED:
        return plgpu.load(ref, index, layout=layout, optimized=False)
    return plgpu.load(ref.at[index], layout=layout, optimized=False)  # pyright: ignore[reportCallIssue]
