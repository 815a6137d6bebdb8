"""Whether what decides can arrive at its target in the steps there are, before any step is taken."""

from __future__ import annotations

import logging

from mlprune_jax.config.settings import PruneStage
from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.density import Cost, check_reachable, density, threshold_counts

_log = logging.getLogger(__name__)

# How far a mended rate would carry, over the way there is. Soft scores take no more: all of them would fall below 0.
MARGINS = {"threshold": 3.0, "score": 1.0}


def target_logit(cost: Cost, target: float, temperature: float) -> float:
    """The logit that, given to every threshold alike, brings the count down to ``target``."""
    low, high = -60.0 * temperature, 60.0 * temperature
    for _ in range(60):
        middle = (low + high) / 2
        kept = threshold_counts(cost, {g.name: middle for g in cost.groups}, temperature)
        low, high = (middle, high) if density(cost, kept) <= target else (low, middle)
    return low


def arriving(settings: PruneStage, cost: Cost, target: float, steps: int) -> PruneStage:
    """The settings, with the learning rate of what decides raised where it could not arrive otherwise.

    Thresholds decide, or soft scores, which go when they fall below 0. Either moves by about its learning rate per Adam
    step, and the schedule's mean rate is half its peak, so in ``steps`` it travels at most ``steps * peak / 2``. Scores
    whose rate is 0 stay, and the final cut takes them in the order that they begin with.

    Args:
        settings: of the stage.
        cost: prices the stage's units.
        target: density over the dense encoder.
        steps: those that the stage learns in.

    Raises:
        ConfigError: too few steps and ``short_schedule`` is "refuse", or a target that cannot be reached at all.
    """
    check_reachable(cost, target)
    if density(cost, {group.name: group.size for group in cost.groups}) <= target:
        return settings
    if settings.densities == "soft":
        what, start, way = "score", f"up to {settings.highest_score:g}", settings.highest_score
    else:
        what, start = "threshold", f"{settings.threshold_start:g}"
        way = settings.threshold_start - target_logit(cost, target, settings.temperature)
    name = f"{what}_learning_rate"
    rate = getattr(settings, name)
    if way <= rate * steps / 2:
        return settings
    if what == "score" and rate == 0 and settings.final_cut:
        _log.warning("%s is 0: the final cut chooses alone, by the order that scores begin with", name)
        return settings
    needed = MARGINS[what] * way / (steps / 2)
    reason = (
        f"{what}s start at {start} and must fall by {way:.2g} for density {target:g}, but {steps} steps at a peak "
        f"learning rate of {rate:g} move them by {rate * steps / 2:.2g} at most"
    )
    if settings.short_schedule == "refuse":
        raise ConfigError(reason, hint=f"set {name} to {needed:.2g}, train longer, or set short_schedule: mend")
    if settings.short_schedule == "allow":
        _log.warning("%s; left so", reason)
        return settings
    _log.warning("%s; raised to %.2g", reason, needed)
    return settings.model_copy(update={name: needed})
