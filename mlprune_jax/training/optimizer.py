"""The optimiser of a stage: density penalty, clip, and AdamW with one learning rate per kind of parameter."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from mlprune_jax.config.settings import PruneStage, TrainSettings
from mlprune_jax.pruning.density import Budget
from mlprune_jax.pruning.regularizer import add_density_penalty


def linear_schedule(peak: float, warmup: float, steps: int) -> optax.Schedule:
    """Linear rise over the share ``warmup`` of ``steps``, then linear fall to 0."""
    rise = round(warmup * steps)
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, max(rise, 1)), optax.linear_schedule(peak, 0.0, max(steps - rise, 1))], [rise]
    )


def ramped_target(
    target: float, ramp: tuple[float, float] | None, steps: int, start: float = 1.0
) -> float | optax.Schedule:
    """The target itself, or its cubic fall from ``start``, what there is, between two shares of the steps."""
    if ramp is None:
        return target
    first, last = (share * steps for share in ramp)

    def schedule(count: ArrayLike) -> Array:
        done = jnp.clip((jnp.asarray(count, jnp.float32) - first) / max(last - first, 1.0), 0.0, 1.0)
        return start - (start - target) * (1.0 - (1.0 - done) ** 3)

    return schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Gradients whose norm over all of them is above ``max_norm`` brought down to it.

    As optax's, but one factor for all: optax divides each array, which XLA does not fuse into the update that follows
    and on a CPU takes as long as AdamW itself.
    """

    def clip(gradients: Any, _params: Any) -> Any:
        norm = optax.tree.norm(gradients)
        factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

    return optax.stateless(clip)


def weight_optimizer(settings: TrainSettings, steps: int) -> optax.GradientTransformation:
    """AdamW under the stage's schedule, unclipped; biases and layer norms do not decay."""
    rate = linear_schedule(settings.learning_rate, settings.warmup, steps)
    return optax.adamw(rate, eps=settings.adam_epsilon, weight_decay=settings.weight_decay, mask=_matrices)


def plain_optimizer(settings: TrainSettings, steps: int) -> optax.GradientTransformation:
    """Clip and AdamW, for training without scores and thresholds."""
    return optax.chain(clip_by_global_norm(settings.max_grad_norm), weight_optimizer(settings, steps))


def pruning_optimizer(
    settings: PruneStage, steps: int, budget: Budget, target: float, *, start: float = 1.0
) -> optax.GradientTransformation:
    """Penalty, then clip, then AdamW; for trees ``{"params", "scores", "thresholds"}``, or soft without the last.

    ``start`` is the budget with everything kept, which the target falls from: a two-sided penalty would hold all units
    where they are until the target came down to it.
    """
    clip = clip_by_global_norm(settings.max_grad_norm)
    one_norm = settings.clip == "all"
    rates = {"scores": settings.score_learning_rate}
    if settings.densities != "soft":
        rates["thresholds"] = settings.threshold_learning_rate
    penalty = add_density_penalty(
        budget,
        ramped_target(target, settings.ramp, steps, start),
        max_strength=settings.max_strength,
        min_strength=settings.min_strength,
        weak_strength=settings.weak_strength,
        weak_below=settings.weak_below,
        full=start,
        two_sided=settings.two_sided,
        key=steered(settings),
    )
    weights = weight_optimizer(settings, steps)
    kinds: dict[Hashable, optax.GradientTransformation] = {
        "params": weights if one_norm else optax.chain(clip, weights)
    }
    for kind, rate in rates.items():
        kinds[kind] = optax.adam(linear_schedule(rate, settings.warmup, steps), eps=settings.adam_epsilon)
    if settings.densities == "equal":
        kinds["thresholds"] = optax.chain(optax.stateless(_average), kinds["thresholds"])
    by_kind = optax.multi_transform(kinds, {kind: kind for kind in kinds})
    return optax.chain(penalty, clip, by_kind) if one_norm else optax.chain(penalty, by_kind)


def steered(settings: PruneStage) -> str:
    """Which part of the trained tree decides how many units stay."""
    return "scores" if settings.densities == "soft" else "thresholds"


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _average(gradients: Any, _params: Any) -> Any:
    """Every gradient replaced by the mean of all, so that what starts equal stays equal."""
    leaves = jax.tree.leaves(gradients)
    mean = jnp.mean(jnp.stack(leaves))
    return jax.tree.map(lambda _: mean, gradients)
