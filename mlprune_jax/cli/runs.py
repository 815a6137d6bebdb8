"""Commands that train: they start runs and take them up again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mlprune_jax.cli.options import (
    Config,
    Coordinator,
    Debug,
    Json,
    Offline,
    Output,
    Overrides,
    Process,
    Processes,
    Quiet,
    Seed,
    as_overrides,
    load_settings,
)
from mlprune_jax.cli.perform import Switches, perform
from mlprune_jax.errors import ConfigError

if TYPE_CHECKING:
    from mlprune_jax.config.settings import RunConfig


class Engine(NamedTuple):
    """How a run's processes find each other; see `mlprune_jax.training.processes.join`."""

    coordinator: str | None
    processes: int | None
    process: int | None


def demo(
    output: Output = None,
    seed: Seed = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, train nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline on generated data and a tiny model: minutes on two cores, no network."""

    def work() -> dict[str, Any] | None:
        from mlprune_jax.config.loading import packaged_config

        config = load_settings(packaged_config("demo"), as_overrides({"seed": seed}, overrides))
        return _start(config, output, Path("runs/demo"), Engine(coordinator, processes, process), dry_run, quiet)

    perform(work, Switches(as_json, quiet, offline=True, debug=debug))


def prune(
    config: Config = None,
    model: Annotated[str | None, typer.Option(metavar="FOLDER_OR_HUB_ID", help="The dense model.")] = None,
    task: Annotated[str | None, typer.Option(help="A task's name, such as mnli.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="The task's data.")] = None,
    density: Annotated[float | None, typer.Option(help="Fraction of the encoder's weights to keep, 0.2 say.")] = None,
    block: Annotated[str | None, typer.Option(metavar="INxOUT", help="Block shape, 32x32 say.")] = None,
    output: Output = None,
    overrides: Overrides = None,
    seed: Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and print the plan, train nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    debug: Debug = False,
) -> None:
    """Fine-tune, prune, distil and evaluate a model: dense -> heads and rows -> shrink -> blocks -> final."""

    def work() -> dict[str, Any] | None:
        if config is None and model is None and not overrides:
            raise ConfigError("nothing to prune", hint="give --config FILE, or --model, --task and --data")
        options = {
            "model": model,
            "task": task,
            "data": data,
            "prune.density": density,
            "prune.blocks.shape": block,
            "seed": seed,
            "offline": True if offline else None,
        }
        settings = load_settings(config, as_overrides(options, overrides))
        usual = Path("runs") / f"{settings.task}-{settings.prune.density:g}"
        return _start(settings, output, usual, Engine(coordinator, processes, process), dry_run, quiet)

    perform(work, Switches(as_json, quiet, offline, debug))


def resume(
    workdir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped.")],
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    debug: Debug = False,
) -> None:
    """Continue a stopped run from its newest whole checkpoint, with the settings it began with."""

    def work() -> dict[str, Any] | None:
        from mlprune_jax import pipeline

        _join(Engine(coordinator, processes, process))
        return _reported(workdir, pipeline.resume(workdir, quiet=quiet))

    perform(work, Switches(as_json, quiet, offline, debug))


def _next_free(folder: Path) -> Path:
    """``folder``, or the first of ``folder-2``, ``folder-3``, ... that does not exist yet."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _start(
    config: RunConfig, output: Path | None, usual: Path, engine: Engine, dry_run: bool, quiet: bool
) -> dict[str, Any] | None:
    from mlprune_jax import pipeline

    workdir = output or _next_free(usual)
    if dry_run:
        return _reported(workdir, pipeline.plan(config, workdir))
    alone = _join(engine)
    if output is None and not alone:
        raise ConfigError("a run of several processes needs a folder that all of them see", hint="name it with -o")
    command = shlex.join(["mlprune", *sys.argv[1:]])
    return _reported(workdir, pipeline.run(config, workdir, command=command, quiet=quiet))


def _join(engine: Engine) -> bool:
    """Meet the run's other processes; whether there are none."""
    from mlprune_jax.training.processes import join, several

    join(*engine)
    return not several()


def _reported(workdir: Path, found: dict[str, Any]) -> dict[str, Any] | None:
    """What this process prints: of several, the first alone."""
    from mlprune_jax.training.processes import is_first

    return {"workdir": str(workdir), **found} if is_first() else None
