"""One command through all stages; a finished stage is never run twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from mlprune_jax.config.loading import load_config
from mlprune_jax.config.settings import PruneStage, RunConfig, TrainSettings
from mlprune_jax.data.demo import write_demo
from mlprune_jax.data.encode import form_tokens, load_tokenizer
from mlprune_jax.errors import ConfigError, DataError, Preempted
from mlprune_jax.files import AnyPath, home_path
from mlprune_jax.inference.stored import load_masks
from mlprune_jax.manifest import write_manifest
from mlprune_jax.models.model_folder import model_digest
from mlprune_jax.models.pretrained import resolve_model
from mlprune_jax.pipeline.context import Context, Evaluate, Model, learning_steps, num_steps
from mlprune_jax.pipeline.feasible import check_schedules
from mlprune_jax.pipeline.folder import RunFolder
from mlprune_jax.pipeline.given import check_given, load_given, load_model
from mlprune_jax.pipeline.grid import with_whole_paths
from mlprune_jax.pipeline.saving import save_model
from mlprune_jax.pipeline.source import encode_split, load_splits
from mlprune_jax.pipeline.stages import Learned, block_stage, head_row_stage, score, train_plain
from mlprune_jax.pipeline.summary import describe_model, summarize
from mlprune_jax.pruning.density import dense_size
from mlprune_jax.pruning.granularity import format_block
from mlprune_jax.report.progress import progress_display
from mlprune_jax.training.checkpoint import Checkpoints, save_state
from mlprune_jax.training.interrupt import StopRequest
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.processes import first_alone, is_first
from mlprune_jax.training.state import TrainState

_log = logging.getLogger(__name__)

FREE_TO_CHANGE = (
    "offline",
    "log_every",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "fsdp",
    "eval_batch_size",
    "rematerialize",
)
"""Settings that a stopped run may have changed in its ``config.resolved.yaml`` before it goes on: they change nothing
that is computed but, as other devices do, its last bits."""


def run(config: RunConfig, workdir: AnyPath, *, command: str = "", quiet: bool = False) -> dict[str, Any]:
    """Run every stage of ``config`` into a new folder.

    Args:
        config: validated settings.
        workdir: made; must not exist or be empty.
        command: how the run was started, for ``run.json``.
        quiet: show no progress.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        Preempted: SIGTERM or SIGINT came; everything up to the last step is saved.
        MLPruneError: bad input, before anything is trained wherever it can be seen there.
    """
    workdir = home_path(workdir)
    folder = RunFolder(workdir)
    folder.check_unused()
    config = with_whole_paths(config)
    existed = workdir.exists()
    with folder.locked(), StopRequest() as stopping:
        try:
            folder.create(config, command)
            checked = _Run(config, folder, quiet=quiet, stopping=stopping)
        except BaseException:
            # Nothing was trained: leave nothing that looks like a run; a folder that was there stays, empty as it was.
            if is_first() and existed:
                folder.clear()
            elif is_first():
                shutil.rmtree(workdir, ignore_errors=True)
            raise
        return _finish(checked)


def resume(workdir: AnyPath, *, quiet: bool = False) -> dict[str, Any]:
    """Continue a run from its newest whole checkpoint; a finished run gives its summary, and its final model, again.

    Raises:
        DataError: the folder holds no run.
        ConfigError: another process runs in it, or its settings, its data or the models it began with have changed.
        IntegrityError: what a finished stage wrote is damaged, or every checkpoint is, or that which measured best.
        MLPruneError: a checkpoint cannot be read, though its files are whole.
        Preempted: as `run`.
    """
    folder = RunFolder(home_path(workdir))
    if not folder.resolved.is_file():
        raise DataError(f"{workdir} holds no run", hint="start one with `mlprune prune`")
    summary = folder.read_summary()
    if summary is not None and folder.has_final():
        folder.describe(state="finished")  # a kill can have come before that was said
        return summary
    with folder.locked(), StopRequest() as stopping:
        return _finish(_Run(load_config(RunConfig, folder.resolved), folder, quiet=quiet, stopping=stopping))


def _finish(checked: _Run) -> dict[str, Any]:
    """Run to the end; ``run.json`` says how it ended."""
    checked.folder.hold_to(checked.identity)
    checked.folder.describe(state="running")
    try:
        summary = checked.finish()
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk, say, which is then what ``error`` tells
            checked.folder.describe(state="stopped", reason=f"{type(error).__name__}: {error}"[:300])
        if isinstance(error, Preempted):
            error.hint = f"go on with `mlprune resume {checked.folder.root}`"
        raise
    checked.folder.describe(state="finished")
    return summary


def plan(config: RunConfig, workdir: AnyPath | None = None) -> dict[str, Any]:
    """What a run into ``workdir`` would do, with everything resolved and checked and nothing trained or written."""
    if workdir is not None:
        RunFolder(home_path(workdir)).check_unused()
    with TemporaryDirectory() as scratch:
        return _Run(config, RunFolder(Path(scratch)), quiet=True).plan()


class _Run:
    """A run's data and starting model, loaded and checked; then its stages, one after the other."""

    def __init__(self, config: RunConfig, folder: RunFolder, *, quiet: bool, stopping: Callable[[], bool] = bool):
        self.config, self.folder, self.stopping = config, folder, stopping
        show = progress_display(quiet or not is_first())
        self.speeds: dict[str, dict[str, Any]] = {}

        def log(entry: dict[str, Any]) -> None:
            folder.log(entry)
            show(entry)

        self.log = log
        if not self._stages():
            raise ConfigError("every stage is disabled: nothing to do", hint="enable dense, heads_rows or blocks")
        if config.model == "demo":
            source = folder.root / "demo"
            first_alone(lambda: write_demo(source, seed=config.seed))  # the same files whenever it is written
            self.base, data = source, str(source)
        else:
            self.base, data = resolve_model(config.model, offline=config.offline), config.data
        self.task, examples = load_splits(config, data, ("train", "dev"), offline=config.offline)
        self.num_labels = self.task.num_labels
        self.given = load_given(config, self.base, self.task, self.num_labels)
        self.start = self.given.start.model
        tokenizer = load_tokenizer(self.base)
        students = check_given(config, self.task, self.given, tokenizer)
        train, dev = (encode_split(examples[s], tokenizer, config) for s in ("train", "dev"))
        layout = Layout(config.fsdp)
        measured = self.speeds.__setitem__
        spared = form_tokens(tokenizer)
        self.context = Context(
            config,
            self.task,
            self.num_labels,
            train,
            dev,
            spared=spared,
            layout=layout,
            stopping=stopping,
            log=self.log,
            measured=measured,
            recall=folder.recall,
            go_on=self._go_on,
        )
        layout.check_rows(config.eval_batch_size, "eval_batch_size")
        for name, stage in self._stages().items():
            self.context.batches(stage, name)
            layout.check_rows(stage.batch_size // stage.accumulate, f"{name}: a batch, or the part of it that")
        steps = {name: learning_steps(self.context, getattr(config.prune, name)) for name in students}
        check_schedules(config.prune, students, steps)
        self.identity = {
            "config": _digest(self.config),
            "training data": train.digest(),
            "model": {name: model_digest(path) for name, path in self.given.folders.items()},
        }
        if config.evaluate_steps is not None:  # the dev split then says which state is kept
            self.identity["dev data"] = dev.digest()

    def _go_on(self, training: str, state: TrainState, evaluate: Evaluate) -> tuple[TrainState, Keeper]:
        """The newest whole checkpoint of a training, or its first state, and what saves the states to come."""
        checkpoints = Checkpoints(
            self.folder.checkpoints / training,
            identity=self.identity,
            keep=self.config.keep_checkpoints,
        )
        restored = checkpoints.restore(state)
        if restored is not None:
            state = restored
            _log.info("%s: goes on after step %d", training, int(state.step))
        self.folder.forget_after(training, int(state.step))
        keeper = Keeper(
            checkpoints,
            steps=self.config.checkpoint_steps,
            minutes=self.config.checkpoint_minutes,
            stopping=self.stopping,
            evaluate=evaluate,
        )
        return state, keeper

    def _load(self, folder: Path) -> Model:
        return load_model(folder, self.task, self.num_labels, self.config.seed).model

    def _stages(self) -> dict[str, TrainSettings]:
        """The enabled stages by name, in their order."""
        stages = {
            "dense": self.config.dense,
            "heads_rows": self.config.prune.heads_rows,
            "blocks": self.config.prune.blocks,
        }
        return {name: stage for name, stage in stages.items() if stage.enabled}

    def plan(self) -> dict[str, Any]:
        """Stages, steps and densities."""
        prune = self.config.prune
        density = {"dense": 1.0, "heads_rows": prune.head_row_density, "blocks": prune.density}
        return {
            "model": self.config.model,
            "task": self.task.name,
            "examples": {"train": len(self.context.train), "dev": len(self.context.dev)},
            "encoder_parameters": dense_size(self.start.config),
            "block": format_block(prune.blocks.shape) if prune.blocks.enabled else None,
            "stages": {
                name: {"steps": self._steps(stage), "density": density[name]} for name, stage in self._stages().items()
            },
        }

    def _steps(self, stage: TrainSettings) -> int:
        """Steps of a stage, those of its recovery among them."""
        if not isinstance(stage, PruneStage):
            return num_steps(self.context, stage, stage.epochs)
        recovery = num_steps(self.context, stage, stage.recover * stage.epochs) if stage.recover else 0
        return learning_steps(self.context, stage) + recovery

    def finish(self) -> dict[str, Any]:
        """Run the stages that are not finished, then write the last one's model as the final one."""
        reports: dict[str, dict[str, Any]] = {}
        prune = self.config.prune
        dense = self.start
        if self.config.dense.enabled:
            dense = self._stage("dense", reports, self._dense)
        model, teacher = dense, dense
        if prune.heads_rows.enabled:
            student = self.given.choose(prune.heads_rows.start_from, dense, dense)
            teacher = self.given.choose(prune.heads_rows.teacher, dense, dense)
            model = self._stage("heads_rows", reports, lambda path: self._heads_rows(path, student, teacher))
            teacher = self._load(self.folder.stage("heads_rows") / "teacher")
        masks = None
        if prune.blocks.enabled:
            student = self.given.choose(prune.blocks.start_from, model, dense)
            judge = self.given.choose(prune.blocks.teacher, teacher, dense)
            model = self._stage("blocks", reports, lambda path: self._blocks(path, student, judge))
            masks = load_masks(self.folder.stage("blocks"))
        self._save(self.folder.final, model, masks)
        first_alone(lambda: write_manifest(self.folder.final))
        summary = summarize(self.config, self.task, reports)
        summary["seconds"] = round(sum(report["seconds"] for report in reports.values()), 1)
        self.folder.close(summary)
        return summary

    def _stage(self, name: str, reports: dict[str, Any], work: Callable[[Path], Model]) -> Model:
        """Run a stage, or take it as finished; its report is written last."""
        path = self.folder.stage(name)
        report = self.folder.finished(name)
        if report is None:
            if self.stopping():
                raise Preempted(f"stopped before stage {name}, as asked", hint="go on with `mlprune resume`")
            started = time.perf_counter()
            model = work(path)
            report = {**score(self.context, model), "seconds": round(time.perf_counter() - started, 1)}
            report |= describe_model(model.config, load_masks(path)) | {"trainings": dict(self.speeds)}
            self.speeds.clear()
            self.folder.finish(name, report)
            metric = self.task.metrics[0]
            kept = report["encoder_parameters"]["kept"] / report["encoder_parameters"]["dense"]
            _log.info("%s: %s %.4f, density %.4f", name, metric, report[metric], kept)
        else:
            _log.info("%s: finished before", name)
        reports[name] = report
        return self._load(path)

    def _dense(self, path: Path) -> Model:
        settings = self.config.dense
        steps = num_steps(self.context, settings, settings.epochs)
        model = train_plain(self.context, "dense", settings, steps, self.start)
        self._save(path, model, None)
        return model

    def _heads_rows(self, path: Path, student: Model, teacher: Model) -> Model:
        result = head_row_stage(self.context, student, teacher)
        self._save(path, result.model, None)
        self._save(path / "teacher", result.unrounded, None)
        _save_learned(path, result.learned)
        return result.model

    def _blocks(self, path: Path, student: Model, teacher: Model) -> Model:
        result = block_stage(self.context, student, teacher)
        self._save(path, result.model, result.learned.masks)
        _save_learned(path, result.learned)
        return result.model

    def _save(self, path: Path, model: Model, masks: dict[str, Any] | None) -> None:
        first_alone(lambda: save_model(path, model, masks, config=self.config, task=self.task, base=self.base))


def _digest(config: RunConfig) -> str:
    """Of every setting that training depends on."""
    settings = config.model_dump(mode="json", exclude=set(FREE_TO_CHANGE))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _save_learned(path: Path, learned: Learned) -> None:
    """Scores, thresholds and uncut weights, for other cuts of the same run, and the masks of this one."""
    save_state(path / "learned", jax.device_get(learned._asdict()))
