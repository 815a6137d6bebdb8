"""A cost table for the device at hand: every implementation beside dense, cell by cell, in one run."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import device
from pallas_kernels.block_sparse_matmul import dense, xla
from pallas_kernels.block_sparse_matmul.api import block_sparse_matmul
from pallas_kernels.block_sparse_matmul.chains import chain, chain_length
from pallas_kernels.block_sparse_matmul.costs import CostTable, Entry, load_table, save_table, user_table_path
from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.implementations import Implementation, runnable
from pallas_kernels.block_sparse_matmul.workloads import ACTIVATIONS, MATRICES, make_matrix
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockShape, BlockSparse, to_dense
from pallas_kernels.timing import measure_interleaved, ratio

Product = Callable[[jax.Array, Any], jax.Array]
Matrix = tuple[BlockShape, str, tuple[int, int]]  # its blocks, dtype and shape

SHAPES = ((768, 768), (3072, 768), (768, 3072), (768, 2304))
BLOCKS: tuple[BlockShape, ...] = ((32, 32), (64, 64), (16, 16))
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)
TOKENS = {"cpu": (128, 512), "gpu": (128, 1024, 4096, 16384)}
SIDE_BY_SIDE = {"cpu": (512,)}
"""Tokens of a call where every core of a CPU runs its own, as a server does with a batch."""
CALLS_IN_A_CHAIN = {"cpu": 1}
"""Of one jitted function, in one measurement; elsewhere `chain_length`, as starting one takes longer than a product."""
MADE_FOR_CPUS: tuple[Implementation, ...] = ("xla",)
"""Not calibrated elsewhere: an unrolled pattern is compiled for each matrix anew, and that for each call of a chain."""
CALLS_IN_A_ROW = 4
"""Of each core, in one measurement side by side: cores need not wait for each other."""
CACHES = 64 * 2**20
"""Bytes that no CPU's caches hold, about."""
MOST_COPIES = 64  # of a matrix so small that more would not be told from a cold one
HOPELESS = 0.8
"""A ratio to dense below which denser matrices are not measured."""


def calibrate(
    path: Path | str | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    *,
    blocks: Sequence[BlockShape] = BLOCKS,
    densities: Sequence[float] = DENSITIES,
    tokens: Sequence[int] | None = None,
    side_by_side: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    rounds: int = 9,
    seconds_limit: float = 300.0,
    details: dict[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> CostTable:
    """Measure the default device and write its table, after every cell, in one step each.

    A cell is left out once the same product was hopeless with fewer blocks, and of a cell an implementation that fails.
    Cells of the device that the file held and that are not measured now stay in it; the matrices that it holds fewest
    of come first, so that a calibration goes on where time ran out for the one before. Masks are random.

    Args:
        path: of the table; ``None`` is the user's own, which is used from then on.
        shapes: ``(d_in, d_out)`` of the matrices; ``None`` is BERT-base's four.
        blocks: block shapes that divide them.
        densities: stored blocks over all blocks.
        tokens, side_by_side, dtypes: tokens of a call alone, of calls side by side; ``None`` picks by platform.
        rounds: measurements of each implementation in a cell.
        seconds_limit: no new cell is begun after that, which is reported; the first cells are the most telling.
        details: what else to write down of the run, such as the command.
        report: told a line per cell, and what time ran out for.

    Returns:
        The table that was written.

    Raises:
        KernelError: no sparse implementation can run here, or blocks that do not divide a matrix.
    """
    path = Path(user_table_path(device.hardware_name()) if path is None else path)
    before = _earlier(path)
    platform = device.platform()
    tokens = TOKENS.get(platform, TOKENS["gpu"]) if tokens is None else tokens
    side_by_side = SIDE_BY_SIDE.get(platform, ()) if side_by_side is None else side_by_side
    cores = device.cores()
    loads = [(count, 1) for count in tokens] + [(count, cores) for count in side_by_side if cores > 1]
    dtypes = usual_dtypes() if dtypes is None else dtypes
    started = time.monotonic()
    measured = {"date": time.strftime("%Y-%m-%d"), "jax": jax.__version__, "rounds": rounds} | (details or {})
    table = CostTable(device.hardware_name(), measured, ())
    matrices = _fewest_first(product(blocks, dtypes, SHAPES if shapes is None else shapes), before)
    for place, (block_shape, dtype, shape) in enumerate(matrices):
        for entry in _ascending(dtype, shape, block_shape, densities, loads, rounds, report):
            if entry is not None:
                gain = max(entry.seconds["dense"] / s for name, s in entry.seconds.items() if name != "dense")
                took = {"seconds": round(time.monotonic() - started), "load": _load()}
                table = CostTable(table.hardware, measured | took, (*table.entries, entry))
                save_table(_with_earlier(table, before), path)
                load = f"{entry.at_once} x {entry.tokens} tokens"
                report(f"{dtype} {shape} {block_shape} {entry.density:.2f} {load}: {gain:.2f}x dense")
            if time.monotonic() - started > seconds_limit:
                whole = _finished(table, before)
                report(_time_over(seconds_limit, len(table.entries), matrices[place:]))
                return whole
    return _finished(table, before)


def _fewest_first(matrices: Iterable[Matrix], before: CostTable) -> list[Matrix]:
    """Matrices by how many cells an earlier table holds of them; where it holds as many, in their order."""
    held = Counter((entry.block_shape, entry.dtype, entry.shape) for entry in before.entries)
    return sorted(matrices, key=lambda matrix: held[matrix])


def _time_over(seconds: float, products: int, unfinished: Sequence[Matrix]) -> str:
    shapes: dict[str, list[str]] = {}
    for block_shape, dtype, shape in unfinished:
        shapes.setdefault(f"{dtype} {_sides(block_shape)}", []).append(_sides(shape))
    left = "; ".join(f"{kind}: {', '.join(each)}" for kind, each in shapes.items())
    return (
        f"time is over ({seconds:.0f} s): {products} products measured, not to the end {left}. "
        "Another calibration begins with the matrices that have the fewest measurements"
    )


def _sides(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _finished(table: CostTable, before: CostTable) -> CostTable:
    if not table.entries:
        raise KernelError(f"every sparse implementation failed on {table.hardware}: nothing was measured")
    return _with_earlier(table, before)


def _with_earlier(table: CostTable, before: CostTable) -> CostTable:
    """A table, and the cells of an earlier one that it lacks; how those were measured is told under "others"."""
    cells = {_cell(entry) for entry in table.entries}
    kept = tuple(entry for entry in before.entries if _cell(entry) not in cells)
    if not kept:
        return table
    others = [{name: fact for name, fact in before.measured.items() if name != "others"}]
    others += before.measured.get("others", [])
    return CostTable(table.hardware, table.measured | {"others": others}, table.entries + kept)


def _cell(entry: Entry) -> tuple[Any, ...]:
    """What was measured, whatever it took."""
    return tuple(value for name, value in vars(entry).items() if name != "seconds")


def _earlier(path: Path) -> CostTable:
    """What a file holds of this device from an earlier calibration; nothing where it is damaged or of another one."""
    hardware = device.hardware_name()
    try:
        found = load_table(path)
    except KernelError:
        return CostTable(hardware, {}, ())
    return found if found.hardware == hardware else CostTable(hardware, {}, ())


def usual_dtypes() -> tuple[str, ...]:
    """bfloat16 on accelerators; float32 on a CPU, and bfloat16 where it has instructions for it."""
    if device.platform() != "cpu":
        return ("bfloat16",)
    return ("float32", "bfloat16") if "avx512_bf16" in device.hardware_name() else ("float32",)


def _ascending(
    dtype: str,
    shape: tuple[int, int],
    block_shape: BlockShape,
    densities: Sequence[float],
    loads: Sequence[tuple[int, int]],
    rounds: int,
    report: Callable[[str], None],
) -> Iterator[Entry | None]:
    """Cells of one matrix, from few blocks to many, without those that are sure to lose; ``None`` where all failed."""
    hopeful, activation = list(loads), _follows(shape)
    grid = (shape[0] // block_shape[0]) * (shape[1] // block_shape[1])
    for stored in sorted({max(round(density * grid), 1) for density in densities}):
        w = make_matrix(shape, block_shape, stored / grid, jnp.dtype(dtype))
        for load in tuple(hopeful):
            seconds, gain = _measure(w, *load, rounds, activation, report)
            if gain < HOPELESS:
                hopeful.remove(load)
            kept = round(stored / grid, 6)
            entry = Entry(dtype, shape, block_shape, kept, load[0], seconds, load[1], activation)
            yield entry if seconds else None


def _follows(shape: tuple[int, int]) -> Activation | None:
    """What follows a matrix in a model, where that decides: XLA for CPUs fuses it with every product alike."""
    if device.platform() == "cpu":
        return None
    return next((each for name, each in ACTIVATIONS.items() if MATRICES[name] == shape), None)


def _measure(
    w: BlockSparse,
    tokens: int,
    at_once: int,
    rounds: int,
    activation: Activation | None,
    report: Callable[[str], None],
) -> tuple[dict[str, float], float]:
    """Median seconds of dense and of every implementation that runs, and the best ratio of neighbours; or nothing."""
    platform = device.platform()
    names: list[Implementation] = [n for n in runnable(w) if platform == "cpu" or n not in MADE_FOR_CPUS]
    if not names:
        raise KernelError(f"no sparse implementation runs on {device.hardware_name()}: nothing to calibrate")
    chained = CALLS_IN_A_CHAIN.get(platform) or chain_length(tokens, w.shape, w.dtype)
    keys = jax.random.split(jax.random.key(0), chained)
    xs = [jax.random.normal(key, (tokens, w.shape[0]), w.dtype) for key in keys]
    weights = _in_turn(w)
    calls: dict[str, Callable[[], Any]] = {}
    compared: tuple[Implementation, ...] = ("dense", *names)
    for name in compared:
        product, held = as_served(name, activation)
        call = _call(chain(product), xs, list(map(held, weights)))
        try:
            jax.block_until_ready(call())
        except Exception as error:  # one cell's registers or shared memory are no reason to end the others
            if name == "dense":
                raise
            report(f"{w.dtype} {w.shape} {w.block_shape}: {name} left out: {type(error).__name__}: {error}"[:300])
            continue
        calls[name] = call
    if len(calls) == 1:
        return {}, 0.0
    in_a_row = 1 if at_once == 1 else CALLS_IN_A_ROW
    calls = {name: _side_by_side(call, at_once) for name, call in calls.items()}
    timings = measure_interleaved(calls, rounds=rounds)
    seconds = {name: float(f"{timing.p50 / (in_a_row * chained):.4g}") for name, timing in timings.items()}
    return seconds, max(ratio(timings["dense"], timings[name]) for name in calls if name != "dense")


def _in_turn(w: BlockSparse) -> list[BlockSparse]:
    """Copies for calls to use in turn: inside a model, a matrix has left a CPU's caches when its layer comes again."""
    spread = w.shape[0] * w.shape[1] * w.values.dtype.itemsize
    copies = min(-(-CACHES // spread), MOST_COPIES) if device.platform() == "cpu" else 1
    return [jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), w) for _ in range(copies)]


def as_served(
    implementation: Implementation, activation: Activation | None = None
) -> tuple[Product, Callable[[BlockSparse], Any]]:
    """A product as a server runs it, and what it makes of a packed matrix once, before any call."""
    if implementation == "dense":
        return lambda x, w: dense.multiply(x, w, None, None, activation), to_dense
    if implementation == "xla":
        return lambda x, w: xla.multiply(x, w, None, None, activation), xla.unroll
    return partial(block_sparse_matmul, activation=activation, implementation=implementation), lambda w: w


def _call(products: Callable[..., Any], xs: list[jax.Array], weights: Sequence[Any]) -> Callable[[], Any]:
    function, turn = jax.jit(products), cycle(weights)
    return lambda: function(xs, next(turn))


def _side_by_side(call: Callable[[], Any], at_once: int) -> Callable[[], Any]:
    """One call, or so many threads that make `CALLS_IN_A_ROW` of them each."""
    if at_once == 1:
        return call

    def in_a_row(_: int) -> None:
        for _ in range(CALLS_IN_A_ROW):
            jax.block_until_ready(call())

    return lambda: list(_threads(at_once).map(in_a_row, range(at_once)))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
