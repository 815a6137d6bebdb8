"""The stages of a run; each takes models and gives a smaller one, and knows nothing of files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import BlockStage, PruneStage, TrainSettings
from mlprune_jax.data.batches import eval_batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.variants import with_variants
from mlprune_jax.models.tasks import TaskModel, first_token_suffices
from mlprune_jax.pipeline.context import Context, Model, learning_steps, num_steps, stage_seed
from mlprune_jax.pipeline.scoring import evaluate_split
from mlprune_jax.pruning.binarize import positive_units
from mlprune_jax.pruning.density import (
    BlockCost,
    Cost,
    HeadRowCost,
    counted_budget,
    counted_logits,
    cut_scores,
    cut_to,
    dense_size,
    density,
    encoder_size,
    threshold_counts,
)
from mlprune_jax.pruning.granularity import HEAD, ROW, block, find_groups
from mlprune_jax.pruning.masks import apply_masks, init_scores, init_thresholds, magnitudes, masks_keeping
from mlprune_jax.pruning.shrink import shrink
from mlprune_jax.training.arrival import arriving
from mlprune_jax.training.importance import BATCHES, first_scores, fisher_scores
from mlprune_jax.training.loop import fit
from mlprune_jax.training.metrics import make_forward
from mlprune_jax.training.optimizer import plain_optimizer, pruning_optimizer
from mlprune_jax.training.speed import RATES, Meter, peak_memory, step_work
from mlprune_jax.training.state import Fixed, TrainState, merge, place_state, split_frozen
from mlprune_jax.training.step import make_train_step
from mlprune_jax.training.teaching import TEACHER_LOGITS, Column, answer_column, ask_teacher, in_parts

_log = logging.getLogger(__name__)

Masks = dict[str, Any]


class Learned(NamedTuple):
    """What a pruning stage learned, before anything is cut, and the masks that it is then cut to."""

    params: dict[str, Any]
    scores: dict[str, jax.Array]
    thresholds: dict[str, np.float32]
    masks: Masks


class HeadRowResult(NamedTuple):
    """Step 1's outcome: what it learned, the model cut to tiles, and the same without rounding (step 2's teacher)."""

    learned: Learned
    model: Model
    unrounded: Model


class BlockResult(NamedTuple):
    """Step 2's outcome: what it learned, and the model with its tiles folded in."""

    learned: Learned
    model: Model


def score(context: Context, model: Model) -> dict[str, Any]:
    """Metrics and loss on the dev split, in float32 whatever the training computed in: `mlprune eval` agrees."""
    config, task = context.config, context.task
    outcomes = evaluate_split(
        TaskModel(model.config, task.kind, context.num_labels),
        model.params,
        context.dev,
        task,
        config,
        batch_size=config.eval_batch_size,
        layout=context.layout,
    )
    return outcomes.metrics


def train_plain(
    context: Context,
    stage: str,
    settings: TrainSettings,
    steps: int,
    model: Model,
    *,
    teacher: Model | None = None,
    masks: Masks | None = None,
    freeze_embeddings: bool = False,
) -> Model:
    """Train without learning what to prune: dense fine-tuning, or recovery under fixed masks, from a teacher."""
    distillation = context.config.distillation
    trained, frozen = split_frozen(model.params, freeze_embeddings=freeze_embeddings)

    def whole(trained: dict[str, Any]) -> Model:
        return Model(model.config, apply_masks(merge(trained["params"], frozen), masks))

    result = _train(
        context,
        stage,
        settings,
        steps,
        model.config,
        {"params": trained},
        plain_optimizer(settings, steps),
        Fixed(frozen, masks, None),
        teacher,
        distillation.of_recovery if distillation else None,
        measure=lambda trained: score(context, whole(trained)),
    )
    return whole(result)


def head_row_stage(context: Context, student: Model, teacher: Model | None) -> HeadRowResult:
    """Step 1: learn which heads and rows stay, cut the rest out, and recover."""
    prune = context.config.prune
    settings = prune.heads_rows
    cost = HeadRowCost(student.config, find_groups(student.config, (HEAD, ROW)), prune.head_row_tiles)
    learned, kept = _learn(context, "heads_rows", settings, student, teacher, cost, prune.head_row_density)

    def cut(masks: Masks) -> Model:
        params, config = shrink(learned.params, masks, student.config)
        return Model(config, params)

    model, unrounded = cut(learned.masks), cut(jax.device_get(masks_keeping(cost.groups, learned.scores, kept)))
    if settings.recover:
        model = unrounded = _recover(context, "heads_rows.recover", settings, model, teacher, None)
    return HeadRowResult(learned, model, unrounded)


def block_stage(context: Context, student: Model, teacher: Model | None) -> BlockResult:
    """Step 2: learn which tiles stay, zero the rest, and recover."""
    settings: BlockStage = context.config.prune.blocks
    cost = BlockCost(student.config, find_groups(student.config, (block(settings.shape),)))
    learned, _ = _learn(context, "blocks", settings, student, teacher, cost, context.config.prune.density)
    model = Model(student.config, apply_masks(learned.params, learned.masks))
    if settings.recover:
        model = _recover(context, "blocks.recover", settings, model, teacher, learned.masks)
    return BlockResult(learned, model)


def _recover(
    context: Context, stage: str, settings: PruneStage, model: Model, teacher: Model | None, masks: Masks | None
) -> Model:
    drawn = context.train if teacher is None else _with_variants(context, teacher)
    return train_plain(
        replace(context, train=drawn),
        stage,
        settings,
        num_steps(context, settings, settings.recover * settings.epochs),
        model,
        teacher=teacher,
        masks=masks,
        freeze_embeddings=settings.freeze_embeddings,
    )


def _with_variants(context: Context, teacher: Model) -> Encoded:
    """What recovery draws from: the training split, and the variants of it that a teacher is to answer."""
    copies = context.config.distillation.variants if context.config.distillation else 0
    if not copies:
        return context.train
    return with_variants(
        context.train,
        np.asarray(teacher.params["bert"]["embeddings"]["word"]["embedding"]),
        copies,
        spared=context.spared,
        swap=context.task.symmetric,
        seed=stage_seed(context.config.seed, "variants"),
    )


def _learn(
    context: Context,
    stage: str,
    settings: PruneStage,
    student: Model,
    teacher: Model | None,
    cost: Cost,
    target: float,
) -> tuple[Learned, dict[str, int]]:
    """Train weights, scores and thresholds together; return them, and the units to keep before rounding to tiles."""
    steps = learning_steps(context, settings)
    soft, temperature = settings.densities == "soft", settings.temperature
    settings = arriving(settings, cost, target, steps)
    if settings.steer_by_count:
        budget, aim = counted_budget(cost, temperature=temperature, soft=soft), target
        start = density(cost, {group.name: group.size for group in cost.groups})
    else:
        budget, aim = (lambda logits: cost.budget(logits, temperature)), published_target(cost, target)
        start = 1.0
    params, frozen = split_frozen(student.params, freeze_embeddings=settings.freeze_embeddings)
    trained = {"params": params, "scores": _first_scores(context, stage, settings, cost, student)}
    if not soft:
        trained["thresholds"] = init_thresholds(cost.groups, settings.threshold_start)
    optimizer = pruning_optimizer(settings, steps, budget, aim, start=start)
    trained = _train(
        context,
        stage,
        settings,
        steps,
        student.config,
        trained,
        optimizer,
        Fixed(frozen),
        teacher,
        context.config.distillation,
        cost,
    )
    scores = jax.tree.map(jnp.asarray, trained["scores"])
    if soft:
        before = {name: int(positive_units(value)) for name, value in scores.items()}
        logits, kept = counted_logits(cost, before, temperature), cut_scores(cost, scores, target)
    else:
        logits = {name: float(value) for name, value in trained["thresholds"].items()}
        before = threshold_counts(cost, logits, temperature)
        kept = cut_to(cost, logits, target, temperature=temperature)
    kept = kept if settings.final_cut else before
    _log.info("%s: density %.4f by count, %.4f after the cut", stage, density(cost, before), density(cost, kept))
    masks = jax.device_get(masks_keeping(cost.groups, scores, cost.round_up(kept)))
    thresholds = {name: np.float32(value) for name, value in logits.items()}
    return Learned(merge(trained["params"], frozen), scores, thresholds, masks), kept


def _first_scores(
    context: Context, stage: str, settings: PruneStage, cost: Cost, student: Model
) -> dict[str, jax.Array]:
    if settings.score_init == "magnitude":
        return magnitudes(cost.groups, student.params)
    if settings.score_init == "fisher":
        part = settings.model_copy(update={"batch_size": settings.batch_size // settings.accumulate})
        batches = context.batches(part, f"{stage}.fisher").iterate(0, BATCHES)
        placed = (context.layout.batch(batch) for batch in batches)
        params = context.layout.place(student.params)
        module, deterministic = context.module(student.config), context.config.deterministic
        scored = fisher_scores(module, cost.groups, params, placed, deterministic=deterministic)
        found, soft = context.layout.to_host(scored), settings.densities == "soft"
        return first_scores(found, cost, *settings.fisher_range, one_order=soft)
    seed = stage_seed(context.config.seed, f"{stage}.scores")
    return init_scores(cost.groups, settings.score_init, seed=seed, scale=settings.score_scale)


def published_target(cost: Cost, target: float) -> float:
    """The target in the units of R, which prices kernels of this stage's own model alone."""
    fixed = encoder_size(cost.config) - encoder_size(cost.config, biases=False)
    return min((target * dense_size(cost.config) - fixed) / encoder_size(cost.config, biases=False), 1.0)


def _train(
    context: Context,
    stage: str,
    settings: TrainSettings,
    steps: int,
    config: ModelConfig,
    trained: dict[str, Any],
    optimizer: optax.GradientTransformation,
    fixed: Fixed,
    teacher: Model | None,
    distillation: Distillation | None,
    cost: Cost | None = None,
    measure: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Compile the step, run it over the stage's batches, and return what it trained.

    With ``measure``, which gives the dev metrics of what is trained, that is the state which measured best.
    """
    layout, run = context.layout, context.config
    distillation = distillation if teacher is not None else None
    once = _answers_once(context, distillation, steps * settings.batch_size)
    taught = teacher if distillation is not None and not once else None
    state = place_state(layout, trained, optimizer)
    learning = {name: getattr(settings, name) for name in ("temperature", "threshold_gradient")} if cost else {}
    step = make_train_step(
        context.module(config.with_dropout(settings.dropout)),
        optimizer,
        groups=cost.groups if cost else (),
        **learning,
        teacher=context.module(taught.config) if taught else None,
        distillation=distillation,
        accumulate=settings.accumulate,
        deterministic=run.deterministic,
        out_shardings=(layout.shardings(state), layout.everywhere),
    )
    fixed = layout.place(fixed._replace(teacher=taught.params if taught else None))
    all_layers = distillation is not None and distillation.compares_layers
    first_only = first_token_suffices(context.task.kind, all_layers=all_layers)
    work = step_work(config, taught.config if taught else None, first_only=first_only)
    meter = Meter(work, run.compute_dtype)
    rates: dict[str, Any] = {}

    def evaluate(number: int, state: TrainState) -> float | None:
        every = run.evaluate_steps
        if measure is None or every is None or (number % every and number != steps):
            return None
        jax.block_until_ready(state)  # the steps under way are the training's time, what follows is not
        with meter.left_out():
            metrics = measure(layout.to_host(state.trained))
        context.log({"stage": stage, "step": number, "steps": steps} | {f"dev_{k}": v for k, v in metrics.items()})
        return metrics[context.task.metrics[0]]

    def log(number: int, values: dict[str, float]) -> None:
        context.log({"stage": stage, "step": number, "steps": steps, **values})
        rates.update({name: values[name] for name in values if name in RATES})

    state, keeper = context.go_on(stage, state, evaluate)
    done = int(state.step)
    with meter.left_out():
        columns = _teacher_columns(context, teacher) if teacher is not None and once and done < steps else {}
    batches = context.batches(settings, stage, columns)
    state = fit(
        step,
        state,
        fixed,
        batches.iterate(done, steps - done),
        steps=steps,
        seed=stage_seed(run.seed, f"{stage}.dropout"),
        log=log,
        log_every=run.log_every,
        keeper=keeper,
        layout=layout,
        meter=meter,
    )
    context.measured(stage, {"steps": steps, "steps_here": steps - done, "peak_memory_bytes": peak_memory(), **rates})
    return layout.to_host(keeper.best(state).trained)


def _answers_once(context: Context, distillation: Distillation | None, draws: int) -> bool:
    """Whether a teacher's logits are all that is compared, and it answers less often for the whole split at once."""
    return distillation is not None and not distillation.compares_layers and draws > len(context.train)


def _teacher_columns(context: Context, teacher: Model) -> dict[str, Column]:
    """A teacher's logits for the training split; a stage has one teacher, so what it answered is named by the part."""
    split, config = context.train, context.config

    def ask(part: Encoded) -> np.ndarray:
        batches = eval_batches(part, batch_size=config.eval_batch_size, buckets=config.buckets)
        _log.info("the teacher answers %d examples of %d", len(part), len(split))
        forward = make_forward(context.module(teacher.config), context.layout)
        return ask_teacher(forward, context.layout.place(teacher.params), part, batches, context.stopping)

    found = [context.recall(f"answers-{part.digest()[:16]}", partial(ask, part)) for part in in_parts(split)]
    return {TEACHER_LOGITS: answer_column(split, np.concatenate(found), per_token=context.task.kind == "span")}
