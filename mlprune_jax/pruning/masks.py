"""Scores and thresholds of a model's units, the masks they give, and masks applied to parameters.

All are plain pytrees: scores and thresholds are dicts by group name; masks are a nested dict over the pruned
parameters alone, each leaf one entry per unit along the parameter's trailing axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.binarize import Temperature, ThresholdGradient, binarize, binarize_softly, top_k_mask
from mlprune_jax.pruning.granularity import Group

Groups = tuple[Group, ...]
ByGroup = Mapping[str, Any]
Masks = Mapping[str, Any]
Params = Mapping[str, Any]

ScoreInit = Literal["constant", "uniform", "kaiming_uniform"]


def init_scores(groups: Groups, init: ScoreInit = "constant", *, seed: int = 0, scale: float = 0.0) -> dict[str, Array]:
    """Float32 scores, one per unit.

    Args:
        groups: what is scored.
        init: "constant" gives ``scale`` everywhere, so that the order of units breaks the first ties; "uniform" draws
            from U(-scale, scale); "kaiming_uniform" from U(-1, 1), which is Kaiming's bound for an ``[n, 1]`` score.
        seed: of the draws; each group draws from a key of its own.
        scale: constant, or half-width of the uniform draw.

    Raises:
        ConfigError: another ``init``, or "uniform" without a ``scale``. Those that look at the model are `magnitudes`
            and `mlprune_jax.training.importance.fisher_scores`.
    """
    if init not in get_args(ScoreInit):
        raise ConfigError(
            f"no init {init!r} of scores: there are {', '.join(get_args(ScoreInit))}",
            hint="magnitudes and fisher_scores look at the model, and are functions of their own",
        )
    if init == "constant":
        return {g.name: jnp.full(g.units, scale, jnp.float32) for g in groups}
    if init == "uniform" and not scale > 0:
        raise ConfigError(f"uniform scores lie in -scale .. scale, so scale must be above 0, got {scale}")
    width = 1.0 if init == "kaiming_uniform" else scale
    keys = jax.random.split(jax.random.key(seed), len(groups))
    return {
        g.name: jax.random.uniform(k, g.units, jnp.float32, -width, width) for g, k in zip(groups, keys, strict=True)
    }


def magnitudes(groups: Groups, params: Params) -> dict[str, Array]:
    """Float32 scores, one per unit: the mean absolute value of its weights, biases left out."""

    def mean(group: Group, leaf: tuple[str, ...]) -> Array:
        weight: Any = params
        for key in leaf:
            weight = weight[key]
        n_in, n_out = weight.shape[0] // group.unit[-2] if len(group.unit) == 2 else 1, group.units[-1]
        return jnp.abs(jnp.asarray(weight, jnp.float32)).reshape(n_in, -1, n_out, group.unit[-1]).mean((1, 3))

    def of(group: Group) -> Array:
        kernels = [leaf for leaf in group.leaves if leaf[-1] == "kernel"]
        return jnp.stack([mean(group, leaf) for leaf in kernels]).mean(0).reshape(group.units)

    return {g.name: of(g) for g in groups}


def init_thresholds(groups: Groups, start: float = 10.0) -> dict[str, Array]:
    """Float32 logits of the kept fraction, one per group.

    Args:
        groups: what has a threshold.
        start: the logit; ``sigmoid(10)`` keeps everything.
    """
    return {g.name: jnp.float32(start) for g in groups}


def compute_masks(
    groups: Groups,
    scores: ByGroup,
    thresholds: ByGroup | None,
    *,
    temperature: Temperature = 1.0,
    threshold_gradient: ThresholdGradient = "sum",
) -> dict[str, Any]:
    """Differentiable 0/1 masks of all groups, shaped as `apply_masks` takes them.

    Args:
        groups: what is masked.
        scores: by group, [*units], float32.
        thresholds: by group, the logit of its kept fraction, []; its highest scores stay (`binarize`). ``None``: what
            scores above 0 stays (`binarize_softly`).
        temperature: of the thresholds' sigmoid.
        threshold_gradient: what moves a threshold, see `binarize`.

    Returns:
        A nested dict over the pruned parameters, each leaf [*units] of its group.
    """

    def mask(name: str) -> Array:
        if thresholds is None:
            return binarize_softly(scores[name])
        return binarize(scores[name], thresholds[name], temperature, threshold_gradient)

    return spread(groups, {g.name: mask(g.name) for g in groups})


def masks_keeping(groups: Groups, scores: ByGroup, kept: Mapping[str, int]) -> dict[str, Any]:
    """Bool masks that keep exactly ``kept[name]`` units of each group, highest scores first.

    Args:
        groups: what is masked.
        scores: by group, [*units].
        kept: by group, how many units stay, as `cut_scores` and `cut_to` say.

    Returns:
        A nested dict over the pruned parameters, for `apply_masks` and `shrink`.
    """
    return spread(groups, {g.name: top_k_mask(scores[g.name], jnp.int32(kept[g.name])) for g in groups})


def spread(groups: Groups, unit_masks: ByGroup) -> dict[str, Any]:
    """A mask per group -> a mask per parameter that the group cuts; a bias takes the mask of its output features."""
    return unflatten_dict({leaf: unit_masks[g.name] for g in groups for leaf in g.leaves})


def as_bool(masks: Masks) -> dict[str, Any]:
    """Masks as they are stored and returned: bool, True = keep."""
    return jax.tree.map(lambda mask: mask != 0, masks)


def apply_mask(weight: Array | np.ndarray, mask: Array | np.ndarray) -> Array | np.ndarray:
    """``weight`` times ``mask``, each mask entry repeated over its unit of the trailing axes.

    Args:
        weight: a parameter.
        mask: ``(n,)`` over its last axis, or ``(n_in, n_out)`` over a matrix.

    Raises:
        ConfigError: the mask's shape does not divide the weight's trailing axes.
    """
    lead, axes = weight.shape[: weight.ndim - mask.ndim], weight.shape[weight.ndim - mask.ndim :]
    fits = mask.ndim in (1, 2) and mask.ndim <= weight.ndim and 0 not in mask.shape
    if not fits or any(axis % n for axis, n in zip(axes, mask.shape, strict=True)):
        raise ConfigError(f"a mask of shape {mask.shape} does not fit a parameter of shape {weight.shape}")
    # Whole rows at a time: with every axis split into (unit, within), a column's mask of the same matrix had a gradient
    # that took 53 ms instead of 3 (768x3072, CPU).
    # In float32 at least: in a weight's bfloat16 a unit's gradient would be summed in bfloat16 too.
    dtype = np.promote_types(weight.dtype, np.float32)
    wide, full = mask.astype(dtype).repeat(axes[-1] // mask.shape[-1], axis=-1), weight.astype(dtype, copy=False)
    if mask.ndim == 1:
        return (full * wide).astype(weight.dtype, copy=False)
    rows, columns = wide.shape
    tiled = full.reshape(*lead, rows, -1, columns) * wide[:, None]
    return tiled.reshape(weight.shape).astype(weight.dtype, copy=False)


def apply_masks(params: Params, masks: Masks | None) -> dict[str, Any]:
    """Parameters with every masked one multiplied by its mask; those without (absent or ``None``) are unchanged.

    Args:
        params: nested dict of parameters.
        masks: bool or 0/1 float masks over some of them; gradients flow through float masks.

    Raises:
        ConfigError: a mask for which there is no parameter, or of a shape that does not fit.

    Example:
        ``model.apply({"params": apply_masks(params, masks)}, input_ids, attention_mask, token_type_ids)``
    """
    return with_masks(lambda _, weight, mask: apply_mask(weight, mask), params, masks or {})


def with_masks(change: Callable[[str, Any, Any], Any], params: Params, masks: Masks) -> dict[str, Any]:
    """Parameters with every masked one replaced by ``change(its name, it, its mask)``; those without are unchanged.

    Raises:
        ConfigError: a mask for which there is no parameter.
    """
    if unknown := masks.keys() - params.keys():
        raise ConfigError(f"masks for unknown parameters {sorted(unknown)}; there are {sorted(params)}")

    def changed(name: str) -> Any:
        value, mask = params[name], masks.get(name)
        if mask is None:
            return value
        return with_masks(change, value, mask) if isinstance(mask, Mapping) else change(name, value, mask)

    return {name: changed(name) for name in params}
