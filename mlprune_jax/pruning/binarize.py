"""Scores to masks: top-k with a learnable k, and its straight-through gradients (arXiv 2105.14636v1, section 3)."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlprune_jax.errors import ConfigError

ThresholdGradient = Literal["sum", "boundary"]
Temperature = float | Float[Array, ""]
WINDOW = 0.02  # of a group's units, on each side of the cut: what "boundary" averages over


def kept_units(threshold: Float[Array, ""], size: int, temperature: Temperature = 1.0) -> Int[Array, ""]:
    """``ceil(sigmoid(threshold / temperature) * size)``, at least 1; in float32, which counts every unit."""
    kept = jnp.ceil(jax.nn.sigmoid(jnp.asarray(threshold, jnp.float32) / temperature) * size).astype(jnp.int32)
    return jnp.maximum(kept, 1)


def top_k_mask(scores: Float[Array, "..."], kept: Int[Array, ""]) -> Bool[Array, "..."]:
    """True for the ``kept`` highest scores; among equal scores the lower index wins; ``kept`` may be traced.

    Tiles are numbered row-major over (out, in), as in the published code, so 2-D scores rank transposed.
    """
    return _mask_of(_ranked(scores), scores.shape, kept)


def _ranked(scores: Float[Array, "..."]) -> Int[Array, "n"]:
    """Units by falling score, numbered as `top_k_mask` says."""
    return jnp.argsort(scores.T.ravel(), stable=True, descending=True)


def _mask_of(order: Int[Array, "n"], shape: tuple[int, ...], kept: Int[Array, ""]) -> Bool[Array, "..."]:
    # A scatter stays a buffer of its own. A chain of comparisons would be fused into the product of mask and weight and
    # done again for each weight: 3 to 8 times slower at BERT-base size on a CPU (benchmarks/train_step.py).
    mask = jnp.zeros(order.shape, bool).at[order].set(jnp.arange(order.size) < kept, unique_indices=True)
    return mask.reshape(shape[::-1]).T


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def binarize(
    scores: Float[Array, "..."],
    threshold: Float[Array, ""],
    temperature: Temperature = 1.0,
    threshold_gradient: ThresholdGradient = "sum",
) -> Float[Array, "..."]:
    """A 0/1 mask over the units, with straight-through gradients.

    Keeps the ``ceil(sigmoid(threshold / temperature) * n)`` highest of n scores. With upstream gradient g:
    ``d scores = g`` for every unit, past the comparison, and ``d threshold`` is one of

    - "sum", as published: ``sum(g * mask)``, past the sigmoid too. That is how the loss answers to all that is kept
      growing together, whatever a unit more or less would do.
    - "boundary": ``n * sigmoid'(threshold / temperature) / temperature`` units times the mean of g over the units next
      to the cut, a share `WINDOW` of all on each side: how the loss answers to keeping one more. The penalty's gradient
      has the same factor, so where they balance, a weight more is worth the same in every matrix.

    Args:
        scores: importance of the units, ``(n,)`` or ``(n_in, n_out)`` tiles.
        threshold: logit of the kept fraction.
        temperature: LEAP's sigmoid temperature; 1 is MLPruning; may be traced, and has no gradient.
        threshold_gradient: see above.

    Returns:
        The mask in the dtype of the scores: a bool output could carry no gradient.

    Raises:
        ConfigError: another ``threshold_gradient``.

    Reference: arXiv 2105.14636v1, section 3.
    """
    return _forward(scores, threshold, temperature, threshold_gradient)[0]


def _forward(scores, threshold, temperature, threshold_gradient):
    if threshold_gradient not in get_args(ThresholdGradient):
        raise ConfigError(f"no threshold_gradient {threshold_gradient!r}: {' or '.join(get_args(ThresholdGradient))}")
    order, kept = _ranked(scores), kept_units(threshold, scores.size, temperature)
    mask = _mask_of(order, scores.shape, kept).astype(scores.dtype)
    return mask, (mask, threshold, temperature, order, kept)


def _backward(threshold_gradient, saved, upstream):
    mask, threshold, temperature, order, kept = saved
    wide = upstream.astype(threshold.dtype)  # a sum over all units, in the precision of what it is for
    none = jnp.zeros_like(temperature)
    if threshold_gradient == "sum":
        return upstream, jnp.sum(wide * mask), none
    n = order.size
    width, rank = max(round(WINDOW * n), 1), jnp.arange(n)
    near = ((kept - width <= rank) & (rank < kept + width)).astype(wide.dtype)
    worth = jnp.sum(wide.T.ravel()[order] * near) / jnp.sum(near)
    return upstream, worth * n * jax.grad(jax.nn.sigmoid)(threshold / temperature) / temperature, none


binarize.defvjp(_forward, _backward)


@jax.custom_vjp
def binarize_softly(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """A 0/1 mask that keeps what scores above 0, at least the highest; the gradient passes to every score.

    How many stay is the scores' own affair, as in soft movement pruning (arXiv 2005.07683, section 4), whose threshold
    on the sigmoid is 1/2 here: another one only shifts the scores' start.
    """
    return top_k_mask(scores, positive_units(scores)).astype(scores.dtype)


binarize_softly.defvjp(lambda scores: (binarize_softly(scores), None), lambda _, upstream: (upstream,))


def positive_units(scores: Float[Array, "..."]) -> Int[Array, ""]:
    """How many units `binarize_softly` keeps."""
    return jnp.maximum(jnp.sum(scores > 0), 1)
