"""The command that performs many runs of one config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mlprune_jax.cli.options import Config, Debug, Json, Offline, Overrides, Quiet, as_overrides
from mlprune_jax.cli.perform import Switches, perform
from mlprune_jax.errors import ConfigError


def sweep(
    output: Annotated[Path, typer.Option("--output", "-o", help="The sweep's folder; new, or one to go on with.")],
    config: Config = None,
    model: Annotated[str | None, typer.Option(metavar="FOLDER_OR_HUB_ID", help="The dense model.")] = None,
    task: Annotated[str | None, typer.Option(help="A task's name, such as mnli.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="The task's data.")] = None,
    densities: Annotated[str | None, typer.Option(help="Densities, 0.5,0.3,0.2 say; the config's otherwise.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, 0,1 say; the config's otherwise.")] = None,
    vary: Annotated[
        list[str] | None, typer.Option("--vary", metavar="PLACE=V,V", help="Any other setting and its values.")
    ] = None,
    overrides: Overrides = None,
    backend: Annotated[
        Literal["local", "slurm", "ray"], typer.Option(help="Where the runs go: here one after another, or a cluster.")
    ] = "local",
    resources: Annotated[
        list[str] | None,
        typer.Option("--resource", metavar="NAME=VALUE", help="Of a job, in the scheduler's name: timeout_min=60."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs, start none.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Run one config at several densities, seeds or other settings; started again, it does what is missing."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline import grid
        from mlprune_jax.pipeline import sweep as sweeping

        if config is None and model is None and not (overrides or vary):
            raise ConfigError("nothing to prune", hint="give --config FILE, or --model, --task and --data")
        options = {"model": model, "task": task, "data": data, "offline": True if offline else None}
        given = as_overrides(options, overrides)
        axes = grid.read_axes(config, given, densities, seeds, vary or [])
        where: dict[str, Any] = {"backend": backend, "resources": _resources(resources or [])}
        if dry_run:
            runs = sweeping.plan(config, given, axes, output, **where).runs
            return {"folder": str(output), "runs": [{"run": run.name, "after": run.after} for run in runs]}
        result = sweeping.sweep(config, given, axes, output, quiet=quiet, **where)
        return result if as_json else result | {"runs": [_row(record) for record in result["runs"]]}

    perform(work, Switches(as_json, quiet, offline, debug))


def _resources(given: list[str]) -> dict[str, Any]:
    """``["timeout_min=60"]`` as names and values, the values in YAML."""
    from mlprune_jax.config.yaml_text import read_yaml

    resources = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"cannot read --resource {text!r}", hint="write --resource NAME=VALUE")
        resources[name] = read_yaml(value, source=f"--resource {text}")
    return resources


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a row of the table: a run's name says what its settings are."""
    return {name: value for name, value in record.items() if name not in ("settings", "task", "linear_density")}
