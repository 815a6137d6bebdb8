"""The pure train step: masks, forward, loss with or without a teacher, penalty, update."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.errors import ConfigError
from mlprune_jax.models.tasks import TaskModel, run_model
from mlprune_jax.pruning.binarize import ThresholdGradient
from mlprune_jax.pruning.granularity import Group
from mlprune_jax.pruning.masks import apply_masks, compute_masks
from mlprune_jax.pruning.regularizer import DensityPenaltyState
from mlprune_jax.training.losses import distillation_loss, logit_divergence, task_loss
from mlprune_jax.training.state import Fixed, TrainState, merge
from mlprune_jax.training.teaching import TEACHER_LOGITS

Batch = dict[str, Any]
Step = jax.stages.Wrapped  # jitted (state, fixed, batch, key) -> (state, metrics)


def make_train_step(
    model: TaskModel,
    optimizer: optax.GradientTransformation,
    *,
    groups: tuple[Group, ...] = (),
    temperature: float = 1.0,
    threshold_gradient: ThresholdGradient = "sum",
    teacher: TaskModel | None = None,
    distillation: Distillation | None = None,
    accumulate: int = 1,
    deterministic: bool = False,
    out_shardings: Any = None,
) -> Step:
    """A jitted step ``(state, fixed, batch, key) -> (state, metrics)``; the old state's buffers are donated.

    Nothing recompiles while densities change: thresholds are traced. A step whose loss or gradient norm is not finite
    leaves parameters, scores and optimiser state bit-identical and counts itself in ``state.skipped``.

    Args:
        model: the student.
        optimizer: for ``state.trained``.
        groups: what scores and thresholds learn to prune; empty for dense training or fixed masks.
        temperature, threshold_gradient: of the thresholds, see `binarize`.
        teacher: its model; ``fixed.teacher`` holds its parameters.
        distillation: loss weights; needed with a teacher. Without one batches hold its logits (`ask_teacher`), which
            then are all that is compared.
        accumulate: parts that a batch is taken in, one after the other; gradients and losses are the parts' means.
        deterministic: forbid GPU operations whose sums depend on the order of threads; slower there, nothing elsewhere.
        out_shardings: of the state and of the metrics; unset: as they come.

    Returns:
        The step; ``key`` is folded with the step's number for dropout.

    Raises:
        ConfigError: ``distillation`` compares hidden states or attention, and there is no teacher to have them.
    """
    if distillation is not None and teacher is None and distillation.compares_layers:
        raise ConfigError(
            "distillation compares hidden states or attention, and no teacher is given",
            hint="give the teacher, or set hidden_weight and attention_weight to 0 and its logits into the batches",
        )
    layers = zip(model.config.layer_shapes, teacher.config.layer_shapes, strict=False) if teacher is not None else ()
    alike = teacher is not None and model.config.num_attention_heads == teacher.config.num_attention_heads
    same_heads = [alike and own.heads == other.heads for own, other in layers]
    wants_hidden = teacher is not None and distillation is not None and distillation.hidden_weight > 0
    wants_attention = any(same_heads) and distillation is not None and distillation.attention_weight > 0
    if distillation is not None and not wants_attention:  # no layer to compare: neither model need keep its attention
        distillation = distillation.model_copy(update={"attention_weight": 0.0})

    masks_of = partial(compute_masks, groups, temperature=temperature, threshold_gradient=threshold_gradient)
    run = partial(run_model, hidden=wants_hidden, attention=wants_attention)

    def loss(trained: dict[str, Any], fixed: Fixed, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        params = apply_masks(merge(trained["params"], fixed.params), fixed.masks)
        if groups:
            params = apply_masks(params, masks_of(trained["scores"], trained.get("thresholds")))
        outputs = run(model, params, batch, train=True, rngs={"dropout": key})
        mask = batch["attention_mask"]
        terms = {"task": task_loss(outputs.logits, batch["labels"], model.kind, mask)}
        if distillation is None:
            return terms["task"], terms
        terms["task"] = distillation.task_weight * terms["task"]
        if teacher is None:
            told = batch[TEACHER_LOGITS]
            divergence = logit_divergence(outputs.logits, told, distillation.temperature, model.kind, mask)
            terms["logit"] = distillation.logit_weight * divergence
        else:
            target = jax.lax.stop_gradient(run(teacher, fixed.teacher, batch))
            terms |= distillation_loss(outputs, target, mask, distillation, model.kind, same_heads=same_heads)
        return sum(terms.values(), jnp.zeros(())), terms

    gradients = jax.value_and_grad(loss, has_aux=True)

    def update(trained: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
        # Optax's Adam raises a float to the int32 step, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state

    def keep(trained: Any, opt_state: Any, _grads: Any) -> tuple[Any, Any]:
        return trained, opt_state

    def step(state: TrainState, fixed: Fixed, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        if accumulate == 1:
            (value, terms), grads = gradients(state.trained, fixed, batch, key)
        else:
            (value, terms), grads = _mean_over_parts(partial(gradients, state.trained, fixed), batch, key, accumulate)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        # A branch, no selection: choosing between new and old arrays would copy all of them, on a CPU at three times
        # the cost of the update itself.
        trained, opt_state = jax.lax.cond(finite, update, keep, state.trained, state.opt_state, grads)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        in_all = state.skipped_in_all + (skipped > 0).astype(jnp.int32)
        metrics = {"loss": value, **terms, "grad_norm": norm, "skipped": skipped, "skipped_in_all": in_all}
        metrics |= _penalty_metrics(opt_state)
        return TrainState(state.step + 1, skipped, in_all, trained, opt_state), metrics

    options = compiler_options(deterministic=deterministic)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def compiler_options(*, deterministic: bool) -> dict[str, bool] | None:
    """What `jax.jit` takes to forbid GPU operations whose sums depend on the order of threads; nothing elsewhere."""
    return {"xla_gpu_deterministic_ops": True} if deterministic else None


def _mean_over_parts(gradients: Any, batch: Batch, key: jax.Array, parts: int) -> Any:
    """Mean of ``gradients(part, key)`` over the parts of a batch, in the memory of one of them."""
    # Part i takes the rows i, i + parts, ...: each device's rows stay on it.
    split = {name: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0) for name, x in batch.items()}

    def add(total: Any, inputs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        part, number = inputs
        found = gradients(part, jax.random.fold_in(key, number))
        return jax.tree.map(lambda so_far, new: so_far + new / parts, total, found), None

    first = jax.tree.map(lambda x: x[0], split)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, first, key))
    return jax.lax.scan(add, start, (split, jnp.arange(parts)))[0]


def _penalty_metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Density, penalty and strength, where the optimiser holds a density penalty."""
    first = opt_state[0]
    if not isinstance(first, DensityPenaltyState):
        return {}
    return {"density": first.density, "penalty": first.penalty, "strength": first.strength}
