"""Scores to start from: how the loss answers to losing a unit, measured before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from mlprune_jax.models.tasks import TaskModel, run_model
from mlprune_jax.pruning.density import Cost
from mlprune_jax.pruning.granularity import Group
from mlprune_jax.pruning.masks import apply_masks, spread
from mlprune_jax.training.losses import task_loss
from mlprune_jax.training.step import compiler_options

BATCHES = 32  # that the squared gradients are summed over


def fisher_scores(
    model: TaskModel,
    groups: tuple[Group, ...],
    params: Any,
    batches: Iterable[dict[str, Any]],
    *,
    deterministic: bool = False,
) -> dict[str, Array]:
    """Squared gradients of the task's loss in the units' masks, all kept, summed over batches.

    That is the diagonal of the masks' Fisher information, a second-order estimate of what losing a unit costs a
    trained model (arXiv 2204.09656, section 3), in which first-order terms vanish; batches stand for examples.

    Args:
        model: the student.
        groups: whose units are scored.
        params: of the student.
        batches: labelled, as the model takes them; small ones come nearer to the definition. One whose gradients are
            not finite is left out, as a training step would be.
        deterministic: see `mlprune_jax.training.step.make_train_step`.

    Returns:
        Float32 scores by group, shaped like its units.
    """

    def loss(units: dict[str, Array], params: Any, batch: dict[str, Any]) -> Array:
        outputs = run_model(model, apply_masks(params, spread(groups, units)), batch)
        return task_loss(outputs.logits, batch["labels"], model.kind, batch["attention_mask"])

    @partial(jax.jit, compiler_options=compiler_options(deterministic=deterministic))
    def add(total: dict[str, Array], params: Any, batch: dict[str, Any]) -> dict[str, Array]:
        gradient = jax.grad(loss)({g.name: jnp.ones(g.units) for g in groups}, params, batch)
        finite = jnp.isfinite(optax.tree.norm(gradient))
        return jax.tree.map(lambda so_far, new: so_far + jnp.where(finite, jnp.square(new), 0.0), total, gradient)

    total = {g.name: jnp.zeros(g.units) for g in groups}
    for batch in batches:
        total = add(total, params, batch)
    return total


def evenly_ranked(scores: Mapping[str, Array | np.ndarray], low: float, high: float) -> dict[str, Array]:
    """All groups' scores in one order, spaced evenly over [low, high]: as far apart as score steps are long."""
    flat = np.concatenate([np.asarray(value).ravel() for value in scores.values()])
    spaced = np.empty(flat.size, np.float32)
    spaced[np.argsort(flat, kind="stable")] = np.linspace(low, high, flat.size)
    parts = np.split(spaced, np.cumsum([np.size(value) for value in scores.values()])[:-1])
    return {name: jnp.asarray(part.reshape(np.shape(scores[name]))) for name, part in zip(scores, parts, strict=True)}


def per_parameter(scores: Mapping[str, Array | np.ndarray], cost: Cost) -> dict[str, Array | np.ndarray]:
    """Scores over the parameters that a unit of their group takes with it while all others stay."""
    full = {group.name: group.size for group in cost.groups}
    prices = {name: (cost.count(full) - cost.count(full | {name: 0})) / size for name, size in full.items()}
    return {name: value / prices[name] for name, value in scores.items()}


def first_scores(
    scores: Mapping[str, Array | np.ndarray], cost: Cost, low: float, high: float, *, one_order: bool
) -> dict[str, Array]:
    """Scores to begin with, over [low, high]: in each group by itself, or in one order by what a parameter is worth.

    One order is for densities that compare all units with one threshold.
    """
    if one_order:
        return evenly_ranked(per_parameter(scores, cost), low, high)
    return {name: evenly_ranked({name: value}, low, high)[name] for name, value in scores.items()}
