"""What can be refused before the first step: models, targets and schedules that cannot end well."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.config.settings import OF_THRESHOLDS, Prune, PruneStage, RunConfig
from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.encode import Tokenizer, check_vocabulary, token_types
from mlprune_jax.data.tasks import Task
from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.density import BlockCost, Cost, HeadRowCost, check_reachable
from mlprune_jax.pruning.granularity import HEAD, PARTS, ROW, BlockShape, block, find_groups
from mlprune_jax.training.arrival import arriving

_log = logging.getLogger(__name__)


def check_inputs(settings: TaskSettings, task: Task, models: Mapping[str, ModelConfig], tokenizer: Tokenizer) -> None:
    """Refuse models that could not read the data.

    Args:
        settings: how texts are cut.
        task: what is predicted.
        models: by the names that the settings have for them.
        tokenizer: that of all of them.

    Raises:
        ConfigError: one has too few positions or token types.
        ModelError: one has fewer embeddings than the tokenizer has tokens.
    """
    types = token_types(tokenizer, len(task.text_columns))
    for name, model in models.items():
        if settings.max_length > model.max_position_embeddings:
            raise ConfigError(
                f"max_length {settings.max_length} is above the {model.max_position_embeddings} positions of {name}",
                hint=f"set max_length to {model.max_position_embeddings} or less",
            )
        if types > model.type_vocab_size:
            raise ConfigError(
                f"task {task.name} has pairs of texts, and {name} one token type for both (type_vocab_size)",
                hint="take a model with two, or make one text of the pair",
            )
        check_vocabulary(tokenizer, model.vocab_size, name)


def check_model(config: RunConfig, task: Task, start: ModelConfig, blocks: ModelConfig, *, fresh_head: bool) -> None:
    """Refuse a starting model that could not run in every stage.

    Args:
        config: the run's settings.
        task: what is predicted.
        start: the starting model.
        blocks: the student of the block stage, as far as it is known.
        fresh_head: whether the starting model has no head for the task.

    Raises:
        ConfigError: tiles that do not divide its matrices, or no head though none is trained.
    """
    if config.prune.blocks.enabled:
        for model in (start, blocks):
            find_groups(model, (block(config.prune.blocks.shape),))
    if not config.dense.enabled and fresh_head:
        raise ConfigError(
            f"{config.model} has no head for task {task.name}, and the dense stage is disabled",
            hint="enable dense, or give a model that was fine-tuned for the task",
        )


def check_teacher(config: RunConfig, stage: str, student: ModelConfig, teacher: ModelConfig) -> None:
    """Refuse a teacher whose layers are to be compared with the student's, and cannot be.

    Raises:
        ConfigError: it has another number of layers, or of features.
    """
    own, other = ((model.num_hidden_layers, model.hidden_size) for model in (student, teacher))
    if config.distillation is not None and config.distillation.compares_layers and own != other:
        raise ConfigError(
            f"the teacher of prune.{stage} has {other[0]} layers of {other[1]} features, the student {own[0]} of "
            f"{own[1]}: their layers cannot be compared",
            hint="set distillation.hidden_weight and distillation.attention_weight to 0: logits alone can be",
        )


def check_schedules(prune: Prune, students: Mapping[str, ModelConfig], steps: Mapping[str, int]) -> None:
    """Refuse densities that cannot be reached, and schedules too short for them where that is asked for.

    Settings of two methods in one stage are allowed, and said; so are blocks with nothing left to remove.

    What step 1 leaves for step 2 is not known yet: step 2 is then judged by the smallest model that step 1 could leave,
    and its schedule by its share of the dense model.

    Args:
        prune: the pruning stages.
        students: of "heads_rows" and "blocks", what they start with as far as it is known.
        steps: of each, those that it learns in.

    Raises:
        ConfigError: as said.
    """
    first, last = prune.heads_rows, prune.blocks
    if first.enabled:
        cost = _head_row_cost(students["heads_rows"], prune.head_row_tiles)
        _warn_of_mixture("heads_rows", first)
        _check_target(first, cost, prune.head_row_density, steps["heads_rows"])
        if last.enabled and last.start_from is None:
            check_reachable(_block_cost(_smallest(cost), last.shape), prune.density)
            _warn_of_idle_blocks(prune)
    if last.enabled:
        _warn_of_mixture("blocks", last)
        known = not first.enabled or last.start_from is not None
        target = prune.density if known else prune.density / prune.head_row_density
        _check_target(last, _block_cost(students["blocks"], last.shape), target, steps["blocks"])


def _head_row_cost(student: ModelConfig, tiles: BlockShape | None) -> HeadRowCost:
    return HeadRowCost(student, find_groups(student, (HEAD, ROW)), tiles)


def _block_cost(student: ModelConfig, shape: BlockShape) -> BlockCost:
    return BlockCost(student, find_groups(student, (block(shape),)))


def _smallest(cost: HeadRowCost) -> ModelConfig:
    """The geometry with the fewest units that tiles cover exactly; which units is all one."""
    kept = cost.round_up({group.name: 1 for group in cost.groups})
    layers = tuple(
        LayerShape(**{part: tuple(range(kept[f"layer_{i}/{name}"])) for part, name in PARTS.items()})
        for i in range(cost.config.num_hidden_layers)
    )
    return cost.config.model_copy(update={"layers": layers})


def _warn_of_idle_blocks(prune: Prune) -> None:
    if prune.head_row_density <= prune.density:
        _log.warning(
            "prune.heads_rows goes down to density %g itself: prune.blocks has no tile to remove, and only trains on; "
            "set prune.blocks.enabled=false, or prune.heads_rows.density above it",
            prune.density,
        )


def _warn_of_mixture(name: str, stage: PruneStage) -> None:
    if stage.mixes_methods:
        _log.warning(
            "prune.%s has densities %s with the scores and penalty of soft ones: a complete config names all of %s; "
            "leave them out for what was published",
            name,
            stage.densities,
            ", ".join(OF_THRESHOLDS),
        )
    if stage.densities == "soft" and not stage.two_sided:
        _log.warning("prune.%s is soft without two_sided: nothing brings back scores that fall below 0 together", name)


def _check_target(stage: PruneStage, cost: Cost, target: float, steps: int) -> None:
    check_reachable(cost, target)
    if stage.short_schedule == "refuse":
        arriving(stage, cost, target, steps)
