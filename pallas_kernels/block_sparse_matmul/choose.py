"""Which implementation a product runs by: the one that measurements say is fastest, and dense in doubt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pallas_kernels import device
from pallas_kernels.block_sparse_matmul.costs import AnyTable, Entry, find_table, given_table
from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.implementations import SPARSE, Implementation
from pallas_kernels.formats import BlockShape

GAIN = 1 / 0.85
"""How many times as fast as dense a sparse implementation is predicted to be, at least, to be picked.

On a CPU whose neighbours are busy, sparse products lose more speed than dense ones: a model of 32x32 blocks at density
0.4 took from 0.78 to 1.09 of the time of its dense weights (runs that are not stored)."""

GAIN_BEYOND = 1 / 0.75
"""The same beyond what was measured: for a matrix with a side shorter than those it is judged by, which has less to do
in as many steps, and for more tokens. Of 12 products of short sides predicted at 1.17 to 1.34 times as fast as dense,
four were slower (`benchmarks/dispatch.py`, runs that are not stored)."""

MOST_OCTAVES = 1.0
"""How far (in powers of two, of the side that differs more) a measured matrix may lie from the one in question."""

# Without a measurement, on a CPU: a tenth of the arithmetic, 1.6 times as fast and more in float32 (packaged tables).
# Elsewhere nothing is sure to win.
CPU_DENSITY = 0.10
CPU_SIDE = 32
CPU_TOKENS = 8  # a single token took 1.1 to 1.3 times as long as dense
CPU_SIZE = 384


class Choice(NamedTuple):
    """How one product runs, and why.

    Attributes:
        implementation: name of the implementation.
        reason: one line for people.
        ratio: predicted dense time over that of the fastest sparse implementation, picked or not; ``None`` where
            nothing was measured.
    """

    implementation: Implementation
    reason: str
    ratio: float | None


def choose(
    shape: tuple[int, int],
    block_shape: BlockShape,
    density: float,
    tokens: int,
    dtype: Any,
    *,
    activation: Activation | None = None,
    side_by_side: bool = False,
    table: AnyTable | None = None,
    device_kind: str | None = None,
    platform: str | None = None,
    allowed: Sequence[Implementation] = SPARSE,
) -> Choice:
    """Pick an implementation from static facts, by interpolation between measured neighbours.

    Between entries of the same dtype and block shape, the logarithm of dense over sparse time is interpolated in
    density, in log2(tokens) and between the two nearest matrix shapes. Density is never extrapolated upwards.

    Args:
        shape: ``(d_in, d_out)``.
        block_shape: ``(block_in, block_out)``.
        density: stored blocks over all blocks.
        tokens: rows of the left operand.
        dtype: of the operands.
        activation: what follows the product. Where it was not measured with one, as if without: our kernels compute it
            with the product, as dense products do not everywhere.
        side_by_side: other calls run at the same time, one on each core of a CPU, where products gain more that alone
            leave cores idle. Where that was not measured, as if alone.
        table: measurements of the device, or their file; ``None`` takes the user's or the package's.
        device_kind: `pallas_kernels.device.hardware_name`, as tables have it; ``None`` is the default device's.
        platform: "cpu", "gpu" or "tpu"; ``None`` is the default device's.
        allowed: sparse implementations that the device and the matrix can have.

    Returns:
        A sparse implementation whose predicted time is less than 0.85 of dense, or of 0.75 beyond what was measured
        (`GAIN_BEYOND`); else dense. Without measurements of this device, dense except where, on a CPU, a sparse product
        has so little to do that it is sure of winning.

    Raises:
        KernelError: the table is damaged, or one that was passed is of another device.
    """
    product = _Product(shape, block_shape, density, tokens, jnp.dtype(dtype).name)
    hardware = device.hardware_name() if device_kind is None else device_kind
    platform = device.platform() if platform is None else platform
    measured = find_table(hardware) if table is None else given_table(table, hardware)
    if measured is not None:
        tried = (_predict_all(each, allowed, product) for each in _alike(measured.entries, side_by_side, activation))
        if predicted := next(filter(None, tried), None):
            ratio, best, beyond = max(predicted)
            picked: Implementation = best if ratio > (GAIN_BEYOND if beyond else GAIN) else "dense"
            return Choice(picked, f"measured: {best} {ratio:.2f}x dense at {product}", ratio)
    return _unmeasured(product, platform, allowed)


class _Product(NamedTuple):
    shape: tuple[int, int]
    block_shape: BlockShape
    density: float
    tokens: int
    dtype: str

    def __str__(self) -> str:
        sides = f"{self.shape[0]}x{self.shape[1]} {self.block_shape[0]}x{self.block_shape[1]}"
        return f"{sides} density {self.density:.2f}, {self.tokens} tokens, {self.dtype}"


class _Prediction(NamedTuple):
    ratio: float  # dense time over the implementation's
    implementation: Implementation
    beyond: bool  # a side is shorter than in each measured matrix it comes from, or tokens are more


def _alike(entries: Iterable[Entry], side_by_side: bool, activation: Activation | None) -> Iterator[list[Entry]]:
    """The entries measured as the product runs, then those that stand in for them."""
    every = list(entries)
    for beside in (True, False) if side_by_side else (False,):
        for follows in dict.fromkeys((activation, None)):
            yield [entry for entry in every if (entry.at_once > 1) == beside and entry.activation == follows]


def _predict_all(
    entries: Sequence[Entry], implementations: Sequence[Implementation], product: _Product
) -> list[_Prediction]:
    """Of every implementation that there are measurements for."""
    found = (_predict(entries, each, product) for each in implementations)
    return [prediction for prediction in found if prediction is not None]


def _predict(entries: Iterable[Entry], implementation: Implementation, product: _Product) -> _Prediction | None:
    """``None`` where no measurement is near."""
    by_shape: dict[tuple[int, int], list[Entry]] = {}
    for entry in entries:
        alike = (entry.dtype, entry.block_shape) == (product.dtype, product.block_shape)
        if alike and implementation in entry.seconds and _octaves(entry.shape, product.shape) <= MOST_OCTAVES:
            by_shape.setdefault(entry.shape, []).append(entry)
    estimates = []
    for measured, cells in by_shape.items():
        estimate = _between_cells(cells, implementation, product)
        if estimate is not None:
            estimates.append((_octaves(measured, product.shape), estimate, measured))
    if not estimates:
        return None
    estimates.sort()
    if estimates[0][0] == 0:
        estimates = [(1.0, *estimates[0][1:])]  # measured itself: the others do not count
    distances, values, shapes = zip(*estimates[:2], strict=True)
    ratio = float(np.exp(np.average(values, weights=[1 / distance for distance in distances])))
    smaller = any(side < min(sides) for side, *sides in zip(product.shape, *shapes, strict=True))
    more = product.tokens > max(entry.tokens for shape in shapes for entry in by_shape[shape])
    return _Prediction(ratio, implementation, smaller or more)


def _between_cells(cells: Iterable[Entry], implementation: Implementation, product: _Product) -> float | None:
    """Logarithm of the ratio, for one matrix shape: by density at every number of tokens, then by tokens."""
    by_tokens: dict[int, dict[float, float]] = {}
    for cell in cells:
        gain = math.log(cell.seconds["dense"] / cell.seconds[implementation])
        by_tokens.setdefault(cell.tokens, {})[cell.density] = gain
    levels = sorted(by_tokens)
    # Few tokens are another regime, where calls cost more than arithmetic; many are more of the same.
    if product.tokens * 2 < levels[0]:
        return None
    gains = [_at_density(by_tokens[level], product.density) for level in levels]
    return float(np.interp(math.log2(product.tokens), np.log2(levels), gains))


def _at_density(gains: dict[float, float], density: float) -> float:
    measured = sorted(gains)
    falling = np.minimum.accumulate([gains[each] for each in measured])  # more blocks gain no more, but for noise
    gain = float(np.interp(density, measured, falling))
    return min(gain, 0.0) if density > measured[-1] else gain  # more blocks than were measured: no gain is known


def _octaves(one: tuple[int, int], other: tuple[int, int]) -> float:
    return max(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))


def _unmeasured(product: _Product, platform: str, allowed: Sequence[Implementation]) -> Choice:
    """Dense, but where a sparse product has so little to do that it wins on any CPU."""
    on_cpu = platform == "cpu" and "xla" in allowed and product.dtype == "float32"
    large = min(product.block_shape) >= CPU_SIDE and min(product.shape) >= CPU_SIZE and product.tokens >= CPU_TOKENS
    if on_cpu and large and product.density <= CPU_DENSITY:
        return Choice("xla", f"no measurement near, but sparse enough for xla: {product}", None)
    return Choice("dense", f"no measurement near: dense at {product}", None)
