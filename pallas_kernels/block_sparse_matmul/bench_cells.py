"""The cells of a bench: one product checked, or timed beside the dense product in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels.block_sparse_matmul import dense, reference, roofline, workloads
from pallas_kernels.block_sparse_matmul.api import block_sparse_matmul
from pallas_kernels.block_sparse_matmul.chains import chain, chain_length
from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.implementations import IMPLEMENTATIONS, check_implementation
from pallas_kernels.block_sparse_matmul.mosaic_gpu import DESIGNS, Tiling, multiprocessors, plan
from pallas_kernels.block_sparse_matmul.mosaic_gpu import matmul as mosaic_matmul
from pallas_kernels.device import device_kind
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockShape, BlockSparse, bucket_size, pad_blocks, to_dense
from pallas_kernels.timing import measure_interleaved, ratio

Product = Callable[..., Array]
"""``(x, w, bias, residual, activation) -> y``."""


def products(names: tuple[str, ...]) -> dict[str, Product]:
    """Implementations by name; those of Mosaic GPU once for each design, as ``mosaic_gpu:streaming``."""
    found: dict[str, Product] = {}
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise KernelError(f"--implementations knows {', '.join(IMPLEMENTATIONS)}, got {name!r}")
        if name == "mosaic_gpu":
            found |= {f"mosaic_gpu:{design}": partial(mosaic_product, design=design) for design in DESIGNS}
        else:
            found[name] = partial(_through_api, name)
    return found


def mosaic_product(
    x: Any, w: BlockSparse, bias: Any, residual: Any, activation: Activation | None, **how: Any
) -> Array:
    check_implementation("mosaic_gpu", w)
    return mosaic_matmul(x, w, bias, residual, activation, **how)


def _through_api(name: Any, x: Any, w: BlockSparse, bias: Any, residual: Any, activation: Activation | None) -> Array:
    return block_sparse_matmul(x, w, bias=bias, residual=residual, activation=activation, implementation=name)


def product_needs_pattern(product: Any) -> bool:
    """Whether a product unrolls the static pattern, and so compiles for each matrix anew."""
    return "xla" in product.args


def check_product(
    product: Product, tokens: int, shape: tuple[int, int], block: BlockShape, dtype: Any
) -> dict[str, Any]:
    """One product against the reference, for every kind of mask with one compilation.

    Returns:
        ``ok``, and by kind of mask the largest difference and how large it may be.
    """
    run = jax.jit(lambda x, w, b, r: product(x, w, b, r, "gelu"))
    rows, columns = shape[0] // block[0], shape[1] // block[1]
    blocks = bucket_size(round(0.3 * rows * columns) + rows)  # of all kinds: a full column adds at most its rows
    kinds: dict[str, Any] = {}
    for kind in workloads.MASK_KINDS:
        w = pad_blocks(workloads.make_matrix(shape, block, 0.3, dtype, kind=kind, padded=False), blocks)
        x, bias, residual = workloads.make_operands(tokens, shape, dtype, bias=True, residual=True)
        shared = w if product_needs_pattern(product) else w.without_pattern()
        found = np.asarray(run(x, shared, bias, residual), np.float32)
        expected = np.asarray(reference.matmul(x, w, bias, residual, "gelu"), np.float32)
        error = float(np.abs(found - expected).max())
        limit = workloads.tolerance(w, dtype) * max(1.0, float(np.abs(expected).max()))
        # A NaN is not below anything, so it never passes; JSON has no word for it.
        kinds[kind] = {"error": error if math.isfinite(error) else str(error), "limit": limit, "ok": error <= limit}
    return {"ok": all(kind["ok"] for kind in kinds.values()), "kinds": kinds}


def layer(product: Product, activation: Activation | None, x: Array, w: Any, bias: Array) -> Array:
    """A product with its bias and what follows it."""
    return product(x, w, bias, None, activation)


class Layers:
    """Jitted chains of one token count, matrix and block shape, shared by its densities.

    All densities get as many blocks as the highest of them needs; what is padding is never read. So a kernel that takes
    the pattern from the arrays compiles once for all of them.
    """

    def __init__(
        self, tokens: int, matrix: str, block: BlockShape, names: dict[str, Product], length: int | None = None
    ) -> None:
        """``length`` is the number of calls in a chain; with 1, the wait for the device is part of the time."""
        self.tokens, self.block, self.names = tokens, block, names
        self.shape, activation = (workloads.MATRICES | workloads.TINY)[matrix], workloads.ACTIVATIONS.get(matrix)
        self.length = chain_length(tokens, self.shape, jnp.bfloat16) if length is None else length
        self.dense = jax.jit(chain(partial(layer, dense.multiply, activation)))
        self.sparse = {name: jax.jit(chain(partial(layer, f, activation))) for name, f in names.items()}

    @cached_property
    def inputs(self) -> tuple[list[Array], Array]:
        """Inputs of a chain and a bias; made when first asked for, as a measured cell needs none."""
        keys = jax.random.split(jax.random.key(0), self.length + 1)
        xs = [jax.random.normal(key, (self.tokens, self.shape[0]), jnp.bfloat16) for key in keys[1:]]
        return xs, jax.random.normal(keys[0], (self.shape[1],), jnp.bfloat16)

    def measure(self, density: float, *, highest: float, rounds: int) -> dict[str, Any]:
        """Time one density: every product and the dense one in the same rounds.

        Args:
            density: share of stored blocks.
            highest: of the densities that share compiled kernels.
            rounds: measurements of each.

        Returns:
            Microseconds of one call, the dense product's over each one's, and each one's part of the model's floor.
        """
        w = workloads.make_matrix(self.shape, self.block, density, jnp.bfloat16, padded=False)
        all_blocks = w.grid[0] * w.grid[1]
        shared = pad_blocks(w.without_pattern(), bucket_size(round(highest * all_blocks)))
        weight = to_dense(w)
        xs, bias = self.inputs
        calls: dict[str, Callable[[], Any]] = {"dense": partial(self.dense, xs, weight, bias)}
        without: dict[str, str] = {}
        for name, layers in self.sparse.items():
            call = partial(layers, xs, w if product_needs_pattern(self.names[name]) else shared, bias)
            if (reason := why_not(call)) is None:
                calls[name] = call
            else:
                without[name] = reason
        timings = measure_interleaved(calls, rounds=rounds, warmups=2)
        least = roofline.floor(self.tokens, self.shape, w.values.size, 2, device_kind())
        return {
            "microseconds": {name: t.p50 / self.length * 1e6 for name, t in timings.items()},
            "p90_microseconds": {name: t.p90 / self.length * 1e6 for name, t in timings.items()},
            "dense_over": {name: ratio(timings["dense"], t) for name, t in timings.items() if name != "dense"},
            "floor_microseconds": least.seconds * 1e6,
            "fraction_of_floor": {name: least.seconds / (t.p50 / self.length) for name, t in timings.items()},
            "stored_blocks": len(w.values),
            "shared_blocks": len(shared.values),
            "multiprocessors": multiprocessors(),
            "without": without,
        }


def why_not(call: Callable[[], Any]) -> str | None:
    """Why a call cannot be timed, or nothing if it ran.

    A kernel that does not compile must not cost the other cells; what it raises is any of the compiler's errors.
    """
    try:
        jax.block_until_ready(call())
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]
    return None


def neighbours(design: Any, tokens: int, shape: tuple[int, int], block: BlockShape, blocks: int) -> list[Tiling]:
    """Tilings near a design's own that fit the multiprocessor, its own first."""
    own = plan(design, tokens, shape, block, blocks, multiprocessors())
    tried = [own]
    tried += [replace(own, stages=stages) for stages in (2, 3, 4, 6, 8) if stages < own.stages]
    if design == "streaming":
        tried += [replace(own, rows=192 - own.rows), replace(own, blocks_per_sm=1), replace(own, blocks_per_sm=3)]
    if design == "x_stationary":
        tried += [replace(own, splits=splits) for splits in (1, 2, 4, 8) if splits <= shape[1] // block[1]]
        tried += [replace(own, strip=strip) for strip in (1, 2, 4, 8)]
    if design == "x_shared":
        tried += [replace(own, group=group) for group in (1, 2, 3, 4, 6, 8)]
    return list(dict.fromkeys(tried))
