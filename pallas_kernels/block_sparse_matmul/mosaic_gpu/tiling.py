"""How each design cuts a product into tiles: small, static, and checked against what a Hopper multiprocessor has.

The numbers follow from what the hardware holds and from the model of the roofline, not from measurements: none was made
on a GPU yet. `bench --steps sweep` tries their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockShape

Design = Literal["streaming", "x_stationary", "x_shared"]
DESIGNS: tuple[Design, ...] = get_args(Design)

SHARED_MEMORY = 232_448
"""Bytes of shared memory that one thread block of a Hopper GPU can have."""

BARRIERS = 1024
"""Bytes kept free for barriers and alignment."""

PRODUCER_REGISTERS = 40
"""Of each thread that only issues copies."""

CONSUMER_REGISTERS = {1: 240, 2: 232, 3: 152}
"""Of each multiplying thread, by the number of multiplying warpgroups: with the producer's, what a block may have."""

ITEMSIZE = 2  # bf16 and fp16 are all that these kernels take
MANY_TOKENS = 1024  # from here on, reading X and W again and again costs more than launching


@dataclass(frozen=True)
class Tiling:
    """One way to cut a product.

    Attributes:
        design: which kernel.
        rows: tokens of a tile, 64 for each multiplying warpgroup (streaming: 64 or 128 for its only one).
        stages: tiles in flight between global and shared memory.
        strip: stored blocks that are fetched at once (x_stationary).
        splits: runs into which the block columns are cut (x_stationary).
        group: block columns of an output tile (x_shared).
        blocks_per_sm: thread blocks of a multiprocessor (streaming).
    """

    design: Design
    rows: int
    stages: int
    strip: int = 1
    splits: int = 1
    group: int = 1
    blocks_per_sm: int = 1

    @property
    def consumers(self) -> int:
        """Multiplying warpgroups beside the producer."""
        return self.rows // 64

    @property
    def consumer_registers(self) -> int:
        """Registers of each of their threads."""
        return CONSUMER_REGISTERS[self.consumers]


def shared_memory(tiling: Tiling, shape: tuple[int, int], block_shape: BlockShape) -> int:
    """Bytes of shared memory of one thread block."""
    (block_in, block_out), rows, stages = block_shape, tiling.rows, tiling.stages
    x_tile, block = rows * block_in, block_in * block_out
    elements = {
        "streaming": stages * (x_tile + block) + rows * block_out,
        "x_stationary": rows * shape[0] + stages * tiling.strip * block + rows * min(block_out, 32),
        "x_shared": stages * (x_tile + tiling.group * block) + rows * min(block_out, 32),
    }[tiling.design]
    return elements * ITEMSIZE + BARRIERS


def accumulator_registers(tiling: Tiling, block_shape: BlockShape) -> int:
    """Registers of a multiplying thread that hold sums: a warpgroup has 128 threads."""
    rows = tiling.rows if tiling.design == "streaming" else 64
    return rows * block_shape[1] * tiling.group // 128


def check(tiling: Tiling, shape: tuple[int, int], block_shape: BlockShape) -> None:
    """Refuse a tiling that cannot run.

    Raises:
        KernelError: what it has too much or too little of.
    """
    where = f"tiling {tiling} of a {shape[0]}x{shape[1]} matrix in blocks of {block_shape[0]}x{block_shape[1]}"
    most_rows = 128 if tiling.design == "streaming" else 192
    if tiling.rows % 64 or not 64 <= tiling.rows <= most_rows:
        raise KernelError(f"{where}: rows must be a multiple of 64 up to {most_rows}")
    if not 2 <= tiling.stages <= 32 or min(tiling.strip, tiling.splits, tiling.group, tiling.blocks_per_sm) < 1:
        raise KernelError(f"{where}: it needs 2 to 32 stages (a refilled tile may still be read) and counts from 1 on")
    if tiling.design == "x_shared" and block_shape[1] < 32:
        raise KernelError(f"{where}: x_shared takes blocks at least 32 wide")
    limit = SHARED_MEMORY // tiling.blocks_per_sm
    if (needed := shared_memory(tiling, shape, block_shape)) > limit:
        raise KernelError(f"{where}: needs {needed} bytes of shared memory, and a thread block has {limit}")
    if (sums := accumulator_registers(tiling, block_shape)) > 128:
        raise KernelError(f"{where}: {sums} registers of sums leave too few for the rest")


def plan(
    design: Design | None, tokens: int, shape: tuple[int, int], block_shape: BlockShape, blocks: int, sms: int
) -> Tiling:
    """The tiling of a product.

    Without a design: below 1024 tokens streaming, whose many small tiles fill the chip; from there on X-stationary
    where the panel fits, else X-shared where blocks are at least 32 wide, else streaming.

    Args:
        design: asked for, or none.
        tokens: rows of ``x``.
        shape: ``(d_in, d_out)``.
        block_shape: ``(block_in, block_out)``.
        blocks: stored blocks, padding included.
        sms: multiprocessors of the device.

    Raises:
        KernelError: the design that was asked for cannot take the matrix.
    """
    if design is not None:
        tiling = _PLANS[design](tokens, shape, block_shape, blocks, sms)
        check(tiling, shape, block_shape)
        return tiling
    candidates: tuple[Design, ...] = ("x_stationary", "x_shared", "streaming")
    for candidate in candidates if tokens >= MANY_TOKENS else ("streaming",):
        try:
            return plan(candidate, tokens, shape, block_shape, blocks, sms)
        except KernelError:
            if candidate == "streaming":  # takes everything; what it refuses nobody can have
                raise
    raise AssertionError("streaming returns or raises")


def _streaming(tokens: int, shape: tuple[int, int], block_shape: BlockShape, blocks: int, sms: int) -> Tiling:
    # 128 columns by 128 rows of sums would be half of a thread's registers, and the epilogue needs as many again.
    rows = 64 if tokens <= 64 or block_shape[1] == 128 else 128
    tiling = Tiling("streaming", rows, 2, blocks_per_sm=2)
    return _deepened(tiling, shape, block_shape, 6)


def _x_stationary(tokens: int, shape: tuple[int, int], block_shape: BlockShape, blocks: int, sms: int) -> Tiling:
    block = block_shape[0] * block_shape[1]
    strip = max(1, min(8, 4096 // block))  # 8 KiB, so that a barrier is paid for by enough work
    for rows in (128, 64):
        tiling = Tiling("x_stationary", rows, 2, strip)
        if (rows == 64 or tokens > 64) and shared_memory(tiling, shape, block_shape) <= SHARED_MEMORY:
            break
    # In clocks of a multiprocessor: 43 bytes arrive from the L2 cache, and 2048 multiplications are done, in each.
    panel = tiling.rows * shape[0] * ITEMSIZE / 43
    work = tiling.rows * blocks * block / 2048
    row_tiles, columns = -(-tokens // tiling.rows), shape[1] // block_shape[1]
    splits = min(range(1, columns + 1), key=lambda s: -(-row_tiles * s // sms) * (panel + work / s))
    return _deepened(replace(tiling, splits=splits), shape, block_shape, 12)


def _x_shared(tokens: int, shape: tuple[int, int], block_shape: BlockShape, blocks: int, sms: int) -> Tiling:
    # 192 columns: 128 tiles of FC2 at 4096 tokens for 132 multiprocessors, and 96 registers of sums.
    group = max(1, min(192 // block_shape[1] + (block_shape[1] == 128), shape[1] // block_shape[1]))
    return _deepened(Tiling("x_shared", 64 if tokens <= 64 else 128, 2, group=group), shape, block_shape, 8)


def _deepened(tiling: Tiling, shape: tuple[int, int], block_shape: BlockShape, most: int) -> Tiling:
    """The tiling with as many stages, up to ``most``, as shared memory holds."""
    limit = SHARED_MEMORY // tiling.blocks_per_sm
    for stages in range(most, 2, -1):
        deeper = replace(tiling, stages=stages)
        if shared_memory(deeper, shape, block_shape) <= limit:
            return deeper
    return tiling


_PLANS: dict[Design, Callable[[int, tuple[int, int], BlockShape, int, int], Tiling]] = {
    "streaming": _streaming,
    "x_stationary": _x_stationary,
    "x_shared": _x_shared,
}
