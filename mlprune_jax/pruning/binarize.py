"""Scores to masks: top-k with a learnable k, and its straight-through gradients (METHOD: binarizer)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def kept_units(threshold: Float[Array, ""], size: int, temperature: float = 1.0) -> Int[Array, ""]:
    """``ceil(sigmoid(threshold / temperature) * size)``, at least 1."""
    kept = jnp.ceil(jax.nn.sigmoid(threshold / temperature) * size).astype(jnp.int32)
    return jnp.maximum(kept, 1)


def top_k_mask(scores: Float[Array, "..."], kept: Int[Array, ""]) -> Bool[Array, "..."]:
    """True for the ``kept`` highest scores; among equal scores the lower index wins; ``kept`` may be traced.

    Tiles are numbered row-major over (out, in), as in the published code, so 2-D scores rank transposed.
    """
    flat = scores.T.ravel()
    order = jnp.argsort(flat, stable=True, descending=True)
    # A scatter stays a buffer of its own. A chain of comparisons would be fused into the product of mask and weight and
    # done again for each weight: 3 to 8 times slower at BERT-base size on a CPU (benchmarks/train_step.py).
    mask = jnp.zeros(flat.shape, bool).at[order].set(jnp.arange(flat.size) < kept, unique_indices=True)
    return mask.reshape(scores.shape[::-1]).T


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def binarize(scores: Float[Array, "..."], threshold: Float[Array, ""], temperature: float = 1.0) -> Float[Array, "..."]:
    """A 0/1 mask over the units, with straight-through gradients.

    Keeps the ``ceil(sigmoid(threshold / temperature) * n)`` highest of n scores. With upstream gradient g:
    ``d scores = g`` for every unit, ``d threshold = sum(g * mask)``, both past the sigmoid and the comparison.

    Args:
        scores: importance of the units, ``(n,)`` or ``(n_in, n_out)`` tiles.
        threshold: logit of the kept fraction.
        temperature: LEAP's sigmoid temperature; 1 is MLPruning.

    Returns:
        The mask in the dtype of the scores: a bool output could carry no gradient.

    Reference: arXiv 2105.14636v1, section 3.
    """
    return top_k_mask(scores, kept_units(threshold, scores.size, temperature)).astype(scores.dtype)


def _forward(scores, threshold, temperature):
    mask = binarize(scores, threshold, temperature)
    return mask, mask


def _backward(_temperature, mask, upstream):
    return upstream, jnp.sum(upstream * mask)


binarize.defvjp(_forward, _backward)
