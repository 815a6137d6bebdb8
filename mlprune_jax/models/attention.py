"""Attention of a forward pass, where nobody asks for the probabilities."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

FUSED_TOKENS = 256
"""Tokens up to which a CPU is faster with all examples at once (docs/speed/training.md, jax 0.10.2): XLA seems to
fuse."""

LARGEST_SCORES = 2**25
"""Bytes of longer examples' scores that a CPU computes at once. What is larger glibc's malloc maps anew for each use,
and no cache holds it: one example after the other is 1.0 to 4.1 times as fast (docs/speed/training.md)."""


def attend(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H L K"],
    value: Float[Array, "B H L K"],
    real: Bool[Array, "B L"],
) -> Float[Array, "B H Q K"]:
    """Each query's mean of the values, weighted by the softmax of its products with the keys over the square root of K.

    Args:
        query, key, value: of one dtype, that of the products' operands.
        real: which keys count; a row without any counts them all alike.

    Returns:
        Float32; softmax and sums are float32 too.
    """
    arrays = query, key, value, real
    if _too_large(*query.shape[:3], tokens=key.shape[2]) and _one_by_one():
        return jax.lax.map(lambda example: _attend_one(*example), arrays)
    return jax.vmap(_attend_one)(*arrays)


def _too_large(*sizes: Any, tokens: Any) -> bool:
    """Whether scores of ``sizes`` (examples, heads, queries) and ``tokens`` keys are neither fused nor fit a cache."""
    if not all(isinstance(size, int) for size in (*sizes, tokens)):  # symbols, in an export
        return False
    return tokens > FUSED_TOKENS and 4 * math.prod(sizes) * tokens > LARGEST_SCORES


def _one_by_one() -> bool:
    """Whether a loop over examples costs nothing: there is one device, and it is a CPU."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _attend_one(
    query: Float[Array, "H Q K"], key: Float[Array, "H L K"], value: Float[Array, "H L K"], real: Bool[Array, " L"]
) -> Float[Array, "H Q K"]:
    """The softmax's division comes after the second product: least memory traffic on a CPU."""
    scores = jnp.einsum("hqk,hlk->hql", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    # A finite floor keeps a row without any real token finite.
    scores = scores + jnp.where(real, 0.0, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    context = jnp.einsum("hql,hlk->hqk", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return context / weights.sum(-1, keepdims=True)
