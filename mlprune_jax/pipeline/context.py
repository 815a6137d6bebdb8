"""What all stages of a run share, and how many steps one has."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import PruneStage, RunConfig, TrainSettings
from mlprune_jax.data.batches import Batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.tasks import Task
from mlprune_jax.models.bert import DTYPES
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.state import TrainState
from mlprune_jax.training.teaching import Column

Evaluate = Callable[[int, TrainState], float | None]


class Model(NamedTuple):
    """Parameters and the geometry that runs them."""

    config: ModelConfig
    params: dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What all stages share.

    Attributes:
        config: the run's settings.
        task, num_labels: what is predicted.
        train, dev: encoded splits.
        spared: ids of the tokens that make up an input's form, which no variant of it loses.
        layout: the devices that trainings run on.
        stopping: whether the process was asked to stop.
        log: receives one line of metrics.
        measured: receives a training's name and how fast it went.
        recall: a name and what works an array out -> the array; of one name it is worked out once in a stage.
        go_on: a training's name, its first state, and what measures a state -> the state to go on from, and what saves
            those to come.
    """

    config: RunConfig
    task: Task
    num_labels: int
    train: Encoded
    dev: Encoded
    spared: frozenset[int]
    layout: Layout
    stopping: Callable[[], bool]
    log: Callable[[dict[str, Any]], None]
    measured: Callable[[str, dict[str, Any]], None]
    recall: Callable[[str, Callable[[], np.ndarray]], np.ndarray]
    go_on: Callable[[str, TrainState, Evaluate], tuple[TrainState, Keeper]]

    def module(self, config: ModelConfig) -> TaskModel:
        """The Flax module that runs ``config`` for this task."""
        dtype = DTYPES[self.config.compute_dtype]
        return TaskModel(config, self.task.kind, self.num_labels, dtype, rematerialize=self.config.rematerialize)

    def batches(self, settings: TrainSettings, stage: str, columns: Mapping[str, Column] | None = None) -> Batches:
        """Training batches of a stage, a pure function of (seed, stage, step)."""
        seed, size = stage_seed(self.config.seed, stage), settings.batch_size
        return Batches(self.train, batch_size=size, buckets=self.config.buckets, seed=seed, columns=columns)


def stage_seed(seed: int, stage: str) -> int:
    """A seed of its own for each stage."""
    return zlib.crc32(f"{seed}/{stage}".encode()) & 0x7FFFFFFF


def learning_steps(context: Context, settings: PruneStage) -> int:
    """Steps of a pruning stage before its cut."""
    return num_steps(context, settings, settings.epochs * (1 - settings.recover))


def num_steps(context: Context, settings: TrainSettings, epochs: float) -> int:
    """Steps of a stage, at least one."""
    return max(1, round(epochs * (len(context.train) // settings.batch_size)))
