"""Check and time the block-sparse product on one GPU: ``python -m pallas_kernels.block_sparse_matmul.bench``.

Under ten minutes: every implementation against the reference, then beside the dense product by token count, matrix,
density and block, then what the roofline's model assumes, then tilings near the kernels' own. Cells are written as they
come and are not measured twice, so a run that was cut off is simply started again.
"""

from __future__ import annotations

import argparse
import platform as host
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.block_sparse_matmul import roofline, workloads
from pallas_kernels.block_sparse_matmul.bench_cells import (
    Layers,
    check_product,
    mosaic_product,
    neighbours,
    products,
)
from pallas_kernels.block_sparse_matmul.bench_record import Budget, Record
from pallas_kernels.block_sparse_matmul.bench_table import cost_table
from pallas_kernels.block_sparse_matmul.costs import save_table
from pallas_kernels.device import compute_capability, device_kind, platform
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockShape
from pallas_kernels.timing import measure_interleaved

STEPS = ("correctness", "grid", "probes", "sweep")
GPU_TOKENS = (4096, 512, 128, 16384)  # what decides first comes first
CELLS = 2
"""What cells mean, from 1 on: chains of 64 calls since 2, each matrix with what follows it in a model."""
DRY_CHAIN = 8
SINGLE_UP_TO = 512  # tokens up to which one call alone is timed too: there launches weigh

Cell = tuple[str, Callable[[], dict[str, Any]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; returns the exit status."""
    options = _parse(arguments)
    if platform() != "gpu" and not options.dry_run:
        print(
            f"this bench times GPU kernels and the default device is a {platform()} ({device_kind()}); nothing was "
            "measured. --dry-run tries the script itself on tiny products.",
            file=sys.stderr,
        )
        return 2
    try:
        record = Record(options.out, environment(options.dry_run, sys.argv[1:] if arguments is None else arguments))
        ended = run(record, Budget(options.seconds), cells(record, options))
    except KernelError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    record.content["complete"] = ended
    record.write()
    if options.table is not None:
        table = cost_table(record)
        save_table(table, options.table)
        print(f"{options.table}: {len(table.entries)} products")
    _print_summary(record, ended)
    return 0 if all(map(_passed, record.cells("correctness/").values())) else 1


def environment(dry_run: bool, arguments: list[str]) -> dict[str, Any]:
    """Versions and device: what every number of the file depends on."""
    capability = compute_capability()
    versions: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "jax-triton", "triton"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        **versions,
        "python": host.python_version(),
        "platform": platform(),
        "device_kind": device_kind(),
        "compute_capability": ".".join(map(str, capability)) if capability else None,
        "dry_run": dry_run,
        "command": " ".join(["python -m pallas_kernels.block_sparse_matmul.bench", *arguments]),
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "roofline_model": roofline.MODEL,
        "cells": CELLS,
    }


def _commit() -> str | None:
    """Of the checkout that this file lies in, with a mark where it was changed."""
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def run(record: Record, budget: Budget, todo: Iterator[Cell]) -> bool:
    """Measure cells until none is left or the time is up; returns whether none is left."""
    for key, measure in todo:
        if record.has(key):
            continue
        if not budget.allows():
            return False
        record.begin(key)
        started = time.monotonic()
        try:
            cell: dict[str, Any] = measure()
        except (KernelError, ImportError) as error:
            cell = {"refused": str(error)}
        except Exception as error:  # of whatever compiler: the other cells are still worth having
            _check_device(key, error)
            cell = {"failed": f"{type(error).__name__}: {error}"[:400]}
        seconds = time.monotonic() - started
        cell["cell_seconds"] = seconds
        budget.spent(seconds)
        record.add(key, cell)
        print(f"{key}  {_brief(cell)}", flush=True)
    return True


def _check_device(key: str, cause: Exception) -> None:
    """After an illegal access every later call fails too; the next run skips the cell that did it."""
    try:
        jax.block_until_ready(jnp.zeros(1) + 1)
    except Exception as error:
        raise KernelError(
            f"the device answers no more after {key} ({cause}); start again to go on behind it"
        ) from error


def cells(record: Record, options: argparse.Namespace) -> Iterator[Cell]:
    """The cells of the steps asked for, the most telling first."""
    steps = {
        "correctness": _correctness(options),
        "grid": _grid(record, options),
        "probes": _probes(record, options),
        "sweep": _sweep(options),
    }
    for step in options.steps:
        yield from steps[step]


def _correctness(options: argparse.Namespace) -> Iterator[Cell]:
    blocks = workloads.SQUARE_BLOCKS + workloads.MIXED_BLOCKS
    # O for every block shape, what the dtype changes once, and FC2 for many steps of many thread blocks.
    cases = [(200, "O", (768, 768), block, "bfloat16") for block in blocks]
    cases += [(200, "O", (768, 768), (32, 32), "float16"), (4000, "FC2", (3072, 768), (64, 64), "bfloat16")]
    if options.dry_run:
        cases = [(20, *tiny, block, "bfloat16") for tiny in workloads.TINY.items() for block in ((32, 32), (16, 64))]
        cases += [(20, *tiny, (32, 32), "float16") for tiny in workloads.TINY.items()]
    for (name, f), (tokens, matrix, shape, block, dtype) in product(products(options.implementations).items(), cases):
        key = f"correctness/{name}/{block[0]}x{block[1]}/{matrix}/{dtype}"
        yield key, partial(check_product, f, tokens, shape, block, jnp.dtype(dtype))


def _trusted(record: Record, options: argparse.Namespace, block: BlockShape) -> dict[str, Any]:
    """The products to time: not those that gave a wrong answer with such blocks, nor the baseline itself."""
    wrong = {
        key.split("/")[1]
        for key, cell in record.cells("correctness/").items()
        if not _passed(cell) and f"/{block[0]}x{block[1]}/" in key
    }
    named = products(options.implementations)
    return {name: f for name, f in named.items() if name not in wrong and name not in ("dense", "reference")}


def _passed(cell: dict[str, Any]) -> bool:
    return cell.get("ok", "refused" in cell)


def _grid(record: Record, options: argparse.Namespace) -> Iterator[Cell]:
    matrices = workloads.TINY if options.dry_run else workloads.MATRICES
    tokens_list = (16,) if options.dry_run else (4096,) if options.quick else GPU_TOKENS
    densities = (0.1, 0.3) if options.dry_run or options.quick else workloads.DENSITIES
    blocks = ((32, 32),) if options.dry_run else workloads.SQUARE_BLOCKS[: 2 if options.quick else 3]
    rounds = 3 if options.dry_run else 20
    lengths = (DRY_CHAIN if options.dry_run else None, 1)  # chains first: the cost table is made of them
    for length, tokens, name, block in product(lengths, tokens_list, matrices, blocks):
        if length == 1 and tokens > SINGLE_UP_TO:
            continue
        layers = Layers(tokens, name, block, _trusted(record, options, block), length)
        for density in densities:
            key = f"grid/{tokens}/{name}/{density}/{block[0]}x{block[1]}/chain of {layers.length}"
            yield key, partial(layers.measure, density, highest=max(densities), rounds=rounds)


def _probes(record: Record, options: argparse.Namespace) -> Iterator[Cell]:
    size = 64 if options.dry_run else 8192
    yield "probes/dense product", partial(_dense_rate, size)
    yield "probes/copy", partial(_copy_rate, size)
    if options.dry_run:
        return
    for block in workloads.SQUARE_BLOCKS:  # every block stored: what a block of this size costs at best
        layers = Layers(4096, "FC1", block, _trusted(record, options, block))
        key = f"probes/density 1/{block[0]}x{block[1]}"
        yield key, partial(layers.measure, 1.0, highest=1.0, rounds=20)


def _dense_rate(size: int) -> dict[str, Any]:
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    seconds = measure_interleaved({"dot": partial(jax.jit(jnp.matmul), a, a)}, rounds=20)["dot"].p50
    return {"seconds": seconds, "flop_per_second": 2 * size**3 / seconds}


def _copy_rate(size: int) -> dict[str, Any]:
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    seconds = measure_interleaved({"copy": partial(jax.jit(lambda a: a + 1), a)}, rounds=20)["copy"].p50
    return {"seconds": seconds, "bytes_per_second": 8 * size**2 / seconds}


def _sweep(options: argparse.Namespace) -> Iterator[Cell]:
    if options.dry_run or options.quick or "mosaic_gpu" not in options.implementations:
        return
    cases: tuple[tuple[str, BlockShape, tuple[str, ...]], ...] = (
        ("FC1", (64, 64), ("x_stationary", "streaming")),
        ("FC2", (64, 64), ("x_shared", "streaming")),
        ("FC1", (32, 32), ("x_stationary",)),
        ("FC2", (32, 32), ("x_shared",)),
    )
    for name, block, designs in cases:
        shape = workloads.MATRICES[name]
        blocks = round(0.2 * shape[0] * shape[1] / (block[0] * block[1]))
        for design in designs:
            tilings = neighbours(design, 4096, shape, block, blocks)
            tried = {str(t): partial(mosaic_product, tiling=t) for t in tilings}
            key = f"sweep/4096/{name}/0.2/{block[0]}x{block[1]}/{design}"
            # Built inside the cell: a dozen inputs on the device are not worth holding before their turn.
            yield key, partial(_measure_sweep, name, block, tried)


def _measure_sweep(name: str, block: BlockShape, tried: dict[str, Any]) -> dict[str, Any]:
    return Layers(4096, name, block, tried).measure(0.2, highest=0.2, rounds=20)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.block_sparse_matmul.bench", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("block_sparse_matmul_bench.json"), help="JSON to write or continue"
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="stop before this much time has passed")
    parser.add_argument("--steps", type=lambda text: tuple(text.split(",")), default=STEPS, help=",".join(STEPS))
    parser.add_argument(
        "--implementations", type=lambda text: tuple(text.split(",")), help="default on a GPU: mosaic_gpu,triton"
    )
    parser.add_argument("--table", type=Path, help="write the grid as a cost table too")
    parser.add_argument("--quick", action="store_true", help="4096 tokens, two densities, two block shapes, no sweep")
    parser.add_argument("--dry-run", action="store_true", help="tiny products on any device, to try the script itself")
    options = parser.parse_args(arguments)
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"--steps knows {','.join(STEPS)}; got {', '.join(sorted(unknown))}")
    if options.table is not None and options.dry_run:
        parser.error("--table takes measured cells, and --dry-run measures none")
    if options.implementations is None:
        # xla unrolls the pattern and compiles for each matrix anew, which would take the time of all the others.
        options.implementations = ("reference", "dense", "xla") if options.dry_run else ("mosaic_gpu", "triton")
    return options


def _brief(cell: dict[str, Any]) -> str:
    for bad in ("failed", "refused"):
        if bad in cell:
            return f"{bad}: {cell[bad][:150]}"
    if "ok" in cell:
        wrong = [kind for kind, found in cell["kinds"].items() if not found["ok"]]
        return f"WRONG: {', '.join(wrong)}" if wrong else "ok"
    if "dense_over" in cell:
        faster = "  ".join(f"{name} {value:.2f}x" for name, value in cell["dense_over"].items())
        without = "".join(f"  without {name}" for name in cell["without"])
        return f"dense {cell['microseconds']['dense']:.1f} us; {faster}{without}"
    return "  ".join(f"{name} {value:.4g}" for name, value in cell.items())


def _print_summary(record: Record, ended: bool) -> None:
    checked = record.cells("correctness/").values()
    right, measured = sum(map(_passed, checked)), len(record.cells(""))
    print(f"correct or refused: {right} of {len(checked)} cells; {measured} cells in {record.path}")
    if not ended:
        print("stopped before the time was up; the same command goes on where this run ended")


if __name__ == "__main__":
    sys.exit(main())
