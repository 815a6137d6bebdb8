"""Whether thresholds can arrive at their target in the steps there are, before any step is taken."""

from __future__ import annotations

import logging

from mlprune_jax.config.settings import PruneStage
from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.density import Cost, check_reachable, density, threshold_counts

_log = logging.getLogger(__name__)

MARGIN = 3.0


def target_logit(cost: Cost, target: float, temperature: float) -> float:
    """The logit that, given to every threshold alike, brings the count down to ``target``."""
    low, high = -60.0 * temperature, 60.0 * temperature
    for _ in range(60):
        middle = (low + high) / 2
        kept = threshold_counts(cost, {g.name: middle for g in cost.groups}, temperature)
        low, high = (middle, high) if density(cost, kept) <= target else (low, middle)
    return low


def threshold_rate(settings: PruneStage, cost: Cost, target: float, steps: int) -> float:
    """The thresholds' learning rate, raised where they could not arrive otherwise; 0 where there are none.

    A threshold moves by about its learning rate per Adam step, and the schedule's mean rate is half its peak, so in
    ``steps`` it travels at most ``steps * peak / 2``.

    Args:
        settings: of the stage.
        cost: prices the stage's units.
        target: density over the dense encoder.
        steps: of the stage.

    Raises:
        ConfigError: too few steps and ``short_schedule`` is "refuse", for thresholds or for soft scores, or a target
            that cannot be reached at all.
    """
    check_reachable(cost, target)
    if settings.densities == "soft":
        _check_soft_scores(settings, steps)
        return 0.0
    way = settings.threshold_start - target_logit(cost, target, settings.temperature)
    rate = settings.threshold_learning_rate
    if way <= rate * steps / 2 or settings.short_schedule == "allow":
        return rate
    needed = MARGIN * way / (steps / 2)
    reason = (
        f"thresholds start at {settings.threshold_start:g} and must fall by {way:.1f} for density {target:g}, but "
        f"{steps} steps at a peak learning rate of {rate:g} move them by {rate * steps / 2:.1f} at most"
    )
    if settings.short_schedule == "refuse":
        raise ConfigError(
            reason,
            hint=f"set threshold_learning_rate to {needed:.2g}, train longer, or set short_schedule: mend",
        )
    _log.warning("%s; raised to %.2g", reason, needed)
    return needed


def _check_soft_scores(settings: PruneStage, steps: int) -> None:
    """Say, or refuse, that scores are too far above 0 to fall below it; their rate is not mended, which orders them."""
    rate = settings.score_learning_rate
    if settings.score_scale <= rate * steps / 2 or settings.short_schedule == "allow":
        return
    reason = (
        f"scores start at {settings.score_scale:g} and go when they fall below 0, but {steps} steps at a peak learning "
        f"rate of {rate:g} move them by {rate * steps / 2:.2g} at most: the final cut would choose alone"
    )
    if settings.short_schedule == "refuse":
        raise ConfigError(reason, hint="lower score_scale, raise score_learning_rate, or train longer")
    _log.warning("%s", reason)
