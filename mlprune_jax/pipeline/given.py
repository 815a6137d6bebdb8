"""The models that a run is given: the one it starts from, and those that its stages name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import PruneStage, RunConfig
from mlprune_jax.data.encode import Tokenizer, check_same_tokens, load_tokenizer
from mlprune_jax.data.tasks import Task
from mlprune_jax.errors import ConfigError
from mlprune_jax.inference.stored import load_masks
from mlprune_jax.models.class_order import in_task_order
from mlprune_jax.models.pretrained import load_pretrained, resolve_model
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pipeline.context import Model, stage_seed
from mlprune_jax.pipeline.feasible import check_inputs, check_model, check_teacher

_log = logging.getLogger(__name__)

START = "model"
STAGES = ("heads_rows", "blocks")


class Loaded(NamedTuple):
    """A model, and whether its head is untrained."""

    model: Model
    fresh_head: bool


@dataclass(frozen=True)
class Given:
    """What a run is given.

    Attributes:
        start: the starting model.
        named: the models of folders that stages name, by these names.
        folders: of all models that came from one, by name; the starting one's is `START`.
    """

    start: Loaded
    named: dict[str, Model]
    folders: dict[str, Path]

    def choose(self, name: str | None, default: Model, dense: Model) -> Model:
        """A model by name: unset the default, "dense" the dense stage's, "pretrained" the starting one, or a folder."""
        if name is None:
            return default
        return {"dense": dense, "pretrained": self.start.model, **self.named}[name]


def load_model(folder: Path, task: Task, num_labels: int, seed: int) -> Loaded:
    """A folder's model, its classes in the task's order; a missing head is drawn from ``seed``."""
    loaded = load_pretrained(folder, num_labels=num_labels, kind=task.kind, seed=seed)
    loaded = in_task_order(loaded, task.label_spellings, folder)
    return Loaded(Model(loaded.config, loaded.params), loaded.fresh_head)


def load_given(config: RunConfig, base: Path, task: Task, num_labels: int) -> Given:
    """The models that a run is given, loaded before anything is trained.

    Args:
        config: the run's settings.
        base: the folder of the starting model and its tokenizer.
        task, num_labels: what is predicted.

    Raises:
        ConfigError: a teacher without a head.
        ModelError: a folder that holds no model for the task.
    """
    start = _starting_model(config, base, task, num_labels)
    folders = {START: base} if config.geometry is None else {}
    named: dict[str, Model] = {}
    for stage, use, source in _sources(config):
        if source == "pretrained":
            fresh = start.fresh_head
        else:
            folders[source] = resolve_model(source, offline=config.offline)
            named[source], fresh = load_model(folders[source], task, num_labels, config.seed)
            if use == "start_from":
                _warn_of_tiles(folders[source])
        if use == "teacher" and fresh:
            raise ConfigError(
                f"prune.{stage}.teacher {source!r} has no head for task {task.name}: it cannot teach",
                hint="name a model that was fine-tuned for the task, or none: the stage before teaches",
            )
        if use == "start_from" and fresh and _stage(config, stage).score_init == "fisher":
            _log.warning(
                "prune.%s starts from %s, whose head is untrained: Fisher's order says little of it; "
                "score_init: constant starts from none",
                stage,
                source,
            )
    return Given(start, named, folders)


def check_given(config: RunConfig, task: Task, given: Given, tokenizer: Tokenizer) -> dict[str, ModelConfig]:
    """See that the models fit the data, the stages and each other.

    Args:
        config: the run's settings.
        task: what is predicted.
        given: the models.
        tokenizer: that of all of them.

    Returns:
        The students by stage, whole as the models that they come from: what step 1 leaves is not known yet.

    Raises:
        ConfigError, ModelError: they do not.
    """
    start = given.start.model
    models = {config.model: start, **given.named}
    check_inputs(config, task, {name: model.config for name, model in models.items()}, tokenizer)
    for name in given.named:
        check_same_tokens(tokenizer, given.folders[name], name)
    students: dict[str, ModelConfig] = {}
    student = teacher = start
    for name in STAGES:
        stage = _stage(config, name)
        if stage.enabled:
            student = given.choose(stage.start_from, student, start)
            check_teacher(config, name, student.config, given.choose(stage.teacher, teacher, start).config)
            teacher = student
        students[name] = student.config
    check_model(config, task, start.config, students["blocks"], fresh_head=given.start.fresh_head)
    return students


def _stage(config: RunConfig, name: str) -> PruneStage:
    return getattr(config.prune, name)


def _sources(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Of each stage that prunes: its name, what for, and the name of a model that no stage of the run makes."""
    for name in STAGES:
        stage = _stage(config, name)
        for use in ("start_from", "teacher"):
            source = getattr(stage, use)
            if stage.enabled and source not in (None, "dense"):
                yield name, use, source


def _starting_model(config: RunConfig, base: Path, task: Task, num_labels: int) -> Loaded:
    if config.geometry is None:
        _warn_of_tiles(base)
        return load_model(base, task, num_labels, config.seed)
    geometry = config.geometry.model_copy(update={"vocab_size": len(load_tokenizer(base))})
    params = init_params(TaskModel(geometry, task.kind, num_labels), stage_seed(config.seed, "init"))
    return Loaded(Model(geometry, jax.device_get(params)), True)


def _warn_of_tiles(folder: Path) -> None:
    if load_masks(folder) is not None:
        _log.warning("%s has pruned tiles: training lets them grow back, and their density with them", folder)
