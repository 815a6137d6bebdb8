"""A bench's grid as the cost table that the dispatcher reads."""

from __future__ import annotations

from typing import Any

from pallas_kernels.block_sparse_matmul import workloads
from pallas_kernels.block_sparse_matmul.bench_record import Record
from pallas_kernels.block_sparse_matmul.costs import CostTable, Entry
from pallas_kernels.block_sparse_matmul.mosaic_gpu import plan


def cost_table(record: Record) -> CostTable:
    """Entries of all timed cells of the grid.

    For few tokens the calls of a chain count, not single ones: a model runs its products one after the other, without
    waiting for the device between them. The time of "mosaic_gpu" is that of the design which it picks by itself.
    """
    entries = []
    for key, cell in record.cells("grid/").items():
        _, tokens, name, density, block, length = key.split("/")
        if "microseconds" not in cell or length == "chain of 1":
            continue
        entries.append(_entry(int(tokens), name, float(density), block, cell))
    measured = {name: record.content["environment"][name] for name in ("jax", "jaxlib", "started", "command", "commit")}
    return CostTable(record.content["environment"]["device_kind"], measured, tuple(entries))


def _entry(tokens: int, matrix: str, density: float, block: str, cell: dict[str, Any]) -> Entry:
    block_in, block_out = map(int, block.split("x"))
    shape = workloads.MATRICES[matrix]
    design = plan(None, tokens, shape, (block_in, block_out), cell["shared_blocks"], cell["multiprocessors"]).design
    seconds = {
        name.removesuffix(f":{design}"): us * 1e-6
        for name, us in cell["microseconds"].items()
        if ":" not in name or name.endswith(f":{design}")
    }
    follows = workloads.ACTIVATIONS.get(matrix)
    return Entry("bfloat16", shape, (block_in, block_out), density, tokens, seconds, activation=follows)
