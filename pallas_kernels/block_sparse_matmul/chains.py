"""Many calls of one product in one jitted function: how its time on an accelerator is told from that of starting it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

CHAIN = 64
"""Calls in a chain. On an H100 (26 Nov 2026) starting a jitted function and waiting for its end took 0.13 to 0.16 ms,
as long as two to six products of 4096 tokens: of eight calls it was a quarter to a half of the time."""

MEMORY = 2 * 2**30
"""Bytes of a chain's inputs and results, about, where more calls than `FEWEST` need them: what small cards spare."""
FEWEST = 8


def chain_length(tokens: int, shape: tuple[int, int], dtype: Any) -> int:
    """Calls in a chain of products ``[tokens, d_in] @ [d_in, d_out]``: `CHAIN`, fewer where they are large."""
    return max(FEWEST, min(CHAIN, MEMORY // (tokens * sum(shape) * jnp.dtype(dtype).itemsize)))


def chain(layer: Callable[..., Array]) -> Callable[..., list[Array]]:
    """One call for each of some inputs in one function, each after the one before.

    Without the order XLA may join products that share a matrix into one.
    """

    def run(xs: list[Array], *operands: Any) -> list[Array]:
        outputs: list[Array] = []
        for x in xs:
            if outputs:
                x, outputs[-1] = jax.lax.optimization_barrier((x, outputs[-1]))
            outputs.append(layer(x, *operands))
        return outputs

    return run
