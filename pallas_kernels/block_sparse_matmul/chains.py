"""Many calls of one product in one jitted function: how its time on an accelerator is told from that of starting it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

CHAIN = 64
"""Calls in a chain. On an H100 (26 Nov 2026) starting a jitted function and waiting for its end took 0.13 to 0.16 ms,
as long as two to six products of 4096 tokens: of eight calls it was a quarter to a half of the time."""


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
