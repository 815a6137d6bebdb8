"""The shortest time that a product can take: a model of the GPU, never a measurement."""

from __future__ import annotations

from typing import NamedTuple

MODEL = "floor = max(FLOP / 790e12, bytes / (0.85 * memory bandwidth)) + 2 us; a model, not a measurement"
FLOPS = 790e12  # of an H100 or H200 in bf16, as large dense products reach it
BANDWIDTHS = {"H200": 4.8e12, "H100": 3.35e12}  # bytes per second by the datasheets of the SXM cards
USABLE = 0.85
LAUNCH = 2e-6


class Floor(NamedTuple):
    """Of one product.

    Attributes:
        flop: of the stored blocks.
        bytes: each operand read once, the output written once.
        seconds: the model's floor.
    """

    flop: float
    bytes: float
    seconds: float


def floor(tokens: int, shape: tuple[int, int], stored: int, itemsize: int, device_kind: str) -> Floor:
    """The floor of ``[tokens, d_in] @ [d_in, d_out]``.

    Args:
        tokens: rows of ``x``.
        shape: ``(d_in, d_out)``.
        stored: elements of the matrix that are multiplied.
        itemsize: bytes of each.
        device_kind: an H100's memory is slower than the H200's, which stands for every other device.
    """
    bandwidth = next((b for name, b in BANDWIDTHS.items() if name in device_kind), BANDWIDTHS["H200"])
    flop = 2.0 * tokens * stored
    moved = float(itemsize) * (tokens * (shape[0] + shape[1]) + stored)
    return Floor(flop, moved, max(flop / FLOPS, moved / (USABLE * bandwidth)) + LAUNCH)
