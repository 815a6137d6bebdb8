"""The adaptive density penalty, as an optax transform on thresholds or scores (arXiv 2105.14636v1, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mlprune_jax.errors import ConfigError

Scalar = Float[Array, ""]


class DensityPenaltyState(NamedTuple):
    """State of `add_density_penalty`, kept for logs and checkpoints.

    Attributes:
        updates: updates so far.
        density, penalty, strength: budget, penalty and lambda of the last update.
    """

    updates: Int[Array, ""]
    density: Scalar
    penalty: Scalar
    strength: Scalar


def density_penalty(density: Scalar, target: Scalar | float, *, two_sided: bool = False) -> Scalar:
    """``(density - target)^2`` above the target; below it 0, or the same square where ``two_sided``."""
    gap = density - target
    return jnp.square(gap if two_sided else jnp.maximum(gap, 0.0))


def adaptive_strength(
    penalty: Scalar,
    target: Scalar | float,
    *,
    max_strength: float | Scalar = 20000.0,
    min_strength: float | Scalar = 50.0,
    weak_strength: float | Scalar = 10.0,
    weak_below: float | Scalar = 3e-4,
    full: float | Scalar = 1.0,
) -> Scalar:
    """The strength lambda: ``max_strength`` where everything is kept, falling with the penalty itself.

    ``max(max_strength * penalty / (full - target)^2, min_strength)``, and ``weak_strength`` where the penalty is below
    ``weak_below``; no gradient flows through it. ``full`` is the budget of everything, less than 1 where a count over
    the dense encoder prices a model that lost a part. 0 for a target of ``full`` or more, which asks for nothing. Below
    a target near it the first would have no bound: there it is ``max_strength``.
    """
    room = jnp.square(jnp.maximum(full - jnp.asarray(target, jnp.float32), 0.0))
    scaled = max_strength * jnp.minimum(penalty / jnp.where(room > 0, room, 1.0), 1.0)
    strength = jnp.where(penalty < weak_below, weak_strength, jnp.maximum(scaled, min_strength))
    return jax.lax.stop_gradient(jnp.where(room > 0, strength, 0.0))


def add_density_penalty(
    budget: Callable[[Any], Scalar],
    target: float | Scalar | optax.Schedule,
    *,
    max_strength: float | Scalar = 20000.0,
    min_strength: float | Scalar = 50.0,
    weak_strength: float | Scalar = 10.0,
    weak_below: float | Scalar = 3e-4,
    full: float | Scalar = 1.0,
    two_sided: bool = False,
    key: str | None = "thresholds",
) -> optax.GradientTransformation:
    r"""Add the gradient of ``strength * penalty(budget(thresholds))`` to the thresholds' gradients, or to the scores'.

    .. math:: g_t \leftarrow g_t + \lambda \nabla_t (R(t) - R_{target})_+^2

    Put it before the global-norm clip: the published clip acts on gradients with the penalty's part in them.

    Args:
        budget: differentiable cost of the thresholds, 1 = the whole model; parameters, FLOPs or latency. Where what
            scores above 0 stays, a cost of the scores, with ``key="scores"``: ``counted_budget(cost, soft=True)``.
        target: wanted value of the budget in (0, 1], or a schedule of it over the update count.
        max_strength: strength where everything is kept; see `adaptive_strength` for this and the next four.
        min_strength: least strength while the penalty is at least ``weak_below``.
        weak_strength: strength below that.
        weak_below: penalty below which ``weak_strength`` holds.
        full: the budget with everything kept.
        two_sided: also pull a budget below the target back up.
        key: where the thresholds lie in the optimised tree (a mapping); ``None``: the tree is the thresholds. Inside
            `optax.multi_transform` the tree keeps its form, so the key stays.

    Returns:
        A transform whose update needs ``params``; its state is a `DensityPenaltyState`. `optax.inject_hyperparams`
        takes it with ``static_args=("budget",)``: it calls every other function as a schedule.

    Raises:
        ConfigError: a constant target outside (0, 1].

    Example:
        ``optax.chain(add_density_penalty(budget, 0.5), optax.clip_by_global_norm(1.0), optax.adamw(3e-5))``

    Reference: arXiv 2105.14636v1, section 3.
    """
    if isinstance(target, int | float) and not 0 < target <= 1:  # not a traced one, as of `optax.inject_hyperparams`
        raise ConfigError(f"target density must lie in (0, 1], got {target}")
    strengths = dict(
        max_strength=max_strength,
        min_strength=min_strength,
        weak_strength=weak_strength,
        weak_below=weak_below,
        full=full,
    )

    def init(params: Any) -> DensityPenaltyState:
        thresholds = params if key is None else params[key]
        penalty, strength = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)  # two: each may be donated
        density = jnp.asarray(budget(thresholds), jnp.float32)
        return DensityPenaltyState(jnp.zeros((), jnp.int32), density, penalty, strength)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, DensityPenaltyState]:
        if params is None:
            raise ValueError("add_density_penalty needs params: call update(updates, state, params)")
        wanted = jnp.asarray(target(state.updates) if callable(target) else target, jnp.float32)

        def weighted_penalty(thresholds: Any) -> tuple[Scalar, tuple[Scalar, Scalar, Scalar]]:
            density = jnp.asarray(budget(thresholds), jnp.float32)
            penalty = density_penalty(density, wanted, two_sided=two_sided)
            strength = adaptive_strength(penalty, wanted, **strengths)
            return strength * penalty, (density, penalty, strength)

        thresholds = params if key is None else params[key]
        gradient, report = jax.grad(weighted_penalty, has_aux=True)(thresholds)
        own = updates if key is None else updates[key]
        own = jax.tree.map(lambda u, g: u + g.astype(u.dtype), own, gradient)
        state = DensityPenaltyState(jnp.asarray(optax.safe_increment(state.updates)), *report)
        return (own if key is None else type(updates)({**updates, key: own})), state

    return optax.GradientTransformation(init, update)
