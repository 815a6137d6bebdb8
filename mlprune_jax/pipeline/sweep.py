"""One config at several densities, seeds or other settings, one folder a run; started again, it does what is missing.

``sweep.json`` (what was asked, and each run's state), ``sweep.jsonl`` (a line of results a run),
``configs/<run>.yaml``, ``runs/<run>/``, and ``jobs/`` with what schedulers write.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlprune_jax.config.loading import dump_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.errors import ConfigError, IntegrityError, MLPruneError, Preempted
from mlprune_jax.files import SUMMARY_AGAIN, AnyPath, home_path, read_json, write_json, write_text
from mlprune_jax.pipeline.backends import BACKENDS, Job, Place
from mlprune_jax.pipeline.folder import RunFolder, check_path, is_empty
from mlprune_jax.pipeline.grid import Axes, SweepRun, common_settings, expand, with_whole_paths
from mlprune_jax.pipeline.run import FREE_TO_CHANGE
from mlprune_jax.training.interrupt import StopRequest

_log = logging.getLogger(__name__)


class SweepPlan(NamedTuple):
    """What a sweep was asked for.

    Attributes:
        base: the settings that all runs have in common.
        axes: the values of each varied setting.
        runs: every combination of them, and the dense stages that they share.
    """

    base: RunConfig
    axes: Axes
    runs: list[SweepRun]


def plan(
    file: Path | None,
    overrides: Sequence[str],
    axes: Axes,
    folder: AnyPath,
    *,
    backend: str = "local",
    resources: Mapping[str, Any] | None = None,
) -> SweepPlan:
    """What `sweep` would do, with everything checked that it checks before its first run, and nothing written.

    Raises:
        ConfigError: as `sweep`.
    """
    folder = home_path(folder)
    base = with_whole_paths(common_settings(file, overrides, axes))
    planned = SweepPlan(base, axes, expand(file, overrides, axes, folder / "runs"))
    _check_folder(folder)
    BACKENDS[backend].check(resources or {})
    _Book(folder, planned)
    return planned


def sweep(
    file: Path | None,
    overrides: Sequence[str],
    axes: Axes,
    folder: AnyPath,
    *,
    backend: str = "local",
    resources: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Perform every combination of the axes' values; finished runs are skipped, stopped ones resumed.

    Args:
        file, overrides: the settings that all runs have in common, as `load_config` takes them.
        axes: the values of each varied setting, as `read_axes` gives them.
        folder: new, empty, or of an earlier sweep of the same settings, which then gets the runs that it lacks.
        backend: "local", "slurm" or "ray".
        resources: what a job of a scheduler gets, in the scheduler's own names.
        quiet: show no progress.

    Returns:
        ``{"folder", "runs": a record of each run}``, earlier sweeps' included.

    Raises:
        ConfigError: wrong settings, or a folder of something else.
        Preempted: a stop was asked for, or a job was stopped; the same call goes on.
        MLPruneError: runs failed; the others are finished.
    """
    folder = home_path(folder)
    planned = plan(file, overrides, axes, folder, backend=backend, resources=resources)
    runs = planned.runs
    with RunFolder(folder).locked(), StopRequest() as stopping:
        book = _Book(folder, planned)
        book.add(planned)
        place = Place(folder / "jobs", resources or {}, quiet, stopping)
        # The shared dense stages first: the others start from their models.
        for wave in ([run for run in runs if run.after is None], [run for run in runs if run.after is not None]):
            for name, change in BACKENDS[backend].perform(book.to_do(wave), place):
                book.note(name, change)
            if stopping() or any(book.runs[run.name]["state"] == "stopped" for run in wave):
                break
        records = book.write_results()
    _raise_unfinished(folder, [book.runs[run.name] | {"run": run.name} for run in runs], asked=stopping())
    return {"folder": str(folder), "runs": records}


def _check_folder(folder: Path) -> None:
    """Refuse a folder that no run could use, or that holds something else."""
    check_path(folder)
    if not folder.exists() or (folder / "sweep.json").is_file():
        return
    if not folder.is_dir() or not is_empty(folder):
        raise ConfigError(f"{folder} holds no sweep and is not empty", hint="choose another folder with -o")


class _Book:
    """A sweep's folder: its runs, their states, and the files that say so; what does not belong there is refused."""

    def __init__(self, folder: Path, planned: SweepPlan):
        self.folder = Path(os.path.abspath(folder))  # jobs may run in another folder
        self.file = self.folder / "sweep.json"
        settings = planned.base.model_dump(mode="json", exclude=set(FREE_TO_CHANGE))
        self.content: dict[str, Any] = {"base": settings, "grids": [], "runs": {}}
        if self.file.is_file():
            stored = read_json(self.file)
            if not stored.keys() >= self.content.keys():
                raise IntegrityError(f"{self.file} is not what a sweep wrote", hint="sweep into another folder")
            # Nothing has begun where the data's path was mistyped, say: the settings may still be mended.
            if any((folder / "runs").glob("*")) or any(run.get("job") for run in stored["runs"].values()):
                self.content = stored
                self._check_same(settings, planned.axes)
        self.runs: dict[str, dict[str, Any]] = self.content["runs"]
        self._check_names(planned.runs)

    def _check_same(self, settings: dict[str, Any], axes: Axes) -> None:
        now, then = _flat(settings), _flat(self.content["base"])
        own = {place for place in axes if all(place in grid for grid in self.content["grids"])}  # each run has its own
        changed = sorted(place for place in (now.keys() | then.keys()) - own if now.get(place) != then.get(place))
        if changed:
            told = ", ".join(f"{place} was {then.get(place)!r} and is {now.get(place)!r}" for place in changed[:5])
            raise ConfigError(
                f"{self.folder} is a sweep of other settings: {told}",
                hint="sweep into another folder, or give the settings as they were and vary them with --vary",
            )

    def _check_names(self, runs: Sequence[SweepRun]) -> None:
        for run in runs:
            if self.runs.get(run.name, {}).get("settings", run.settings) != run.settings:
                raise ConfigError(
                    f"{self.folder} has another run named {run.name}, of {self.runs[run.name]['settings']}",
                    hint="write one of the values differently, or sweep into another folder",
                )

    def add(self, planned: SweepPlan) -> None:
        """Enter runs that are not there yet, and write every run's config."""
        runs = planned.runs
        grid = {place: list(values) for place, values in planned.axes.items()}
        if grid not in self.content["grids"]:
            self.content["grids"].append(grid)
        for run in runs:
            self.runs.setdefault(run.name, {"settings": run.settings, "after": run.after, "state": "waiting"})
        write_json(self.file, self.content)  # first: it makes the folder a sweep's, and a kill may come at any moment
        for name in ("configs", "runs"):
            (self.folder / name).mkdir(exist_ok=True)
        for run in runs:
            write_text(self._config(run.name), dump_config(run.config))

    def to_do(self, runs: Sequence[SweepRun]) -> list[Job]:
        """Those that are not finished and can begin; the others' states are noted."""
        jobs = []
        for run in runs:
            if self._has_finished(run.name):
                self.note(run.name, {"state": "finished", "reason": None, "job": None})
            elif run.after is not None and self.runs[run.after]["state"] != "finished":
                self.note(run.name, {"state": "failed", "reason": f"needs {run.after}, which failed"})
            else:
                config, workdir = self._config(run.name), self._workdir(run.name)
                jobs.append(Job(run.name, config, workdir, self.runs[run.name].get("job")))
        return jobs

    def _has_finished(self, name: str) -> bool:
        """Whether there is nothing to do for a run; others may still need its model, which resuming it brings back."""
        if not self._summary(name).is_file():
            return False
        others = [other for other, run in self.runs.items() if run["after"] == name]
        return all(self._summary(other).is_file() for other in others) or RunFolder(self._workdir(name)).has_final()

    def note(self, name: str, change: Mapping[str, Any]) -> None:
        """Note what changed of a run, at once in ``sweep.json``."""
        if change["state"] != self.runs[name]["state"]:
            reason = f": {change['reason']}" if change.get("reason") else ""
            _log.info("%s: %s%s", name, change["state"], reason)
        self.runs[name].update({"reason": None} | dict(change))
        write_json(self.file, self.content)

    def write_results(self) -> list[dict[str, Any]]:
        """A record of each run; those with results become the lines of ``sweep.jsonl``."""
        for name, run in self.runs.items():
            if run["state"] == "finished" and not self._summary(name).is_file():
                self.note(name, {"state": "waiting", "reason": "its folder is gone"})
        records = [self._record(name) for name in self.runs]
        lines = [json.dumps(record) + "\n" for record in records if record["state"] == "finished"]
        write_text(self.folder / "sweep.jsonl", "".join(lines))
        return records

    def _record(self, name: str) -> dict[str, Any]:
        """What is known of a run, which has failed where its results are damaged."""
        results = {}
        if self.runs[name]["state"] == "finished":
            try:
                results = _results(self._summary(name))
            except IntegrityError as error:
                self.note(name, {"state": "failed", "reason": str(error)})
        return {"run": name, "state": self.runs[name]["state"], "settings": self.runs[name]["settings"]} | results

    def _config(self, name: str) -> Path:
        return self.folder / "configs" / f"{name}.yaml"

    def _workdir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def _summary(self, name: str) -> Path:
        return RunFolder(self._workdir(name)).summary


def _results(path: Path) -> dict[str, Any]:
    """What a table says of a finished run, from its summary."""
    summary = read_json(path)
    try:
        final = summary["final"]
        return {
            "task": summary["task"],
            "metric": summary["metric"],
            "value": final[summary["metric"]],
            "density": final["density"]["encoder"],
            "linear_density": final["density"]["linear"],
            "seconds": summary["seconds"],
        }
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not what a run wrote: {error!r}", hint=SUMMARY_AGAIN) from error


def _raise_unfinished(folder: Path, runs: Sequence[Mapping[str, Any]], *, asked: bool) -> None:
    """Say what of this call's runs is not finished, and why."""
    missing = [run for run in runs if run["state"] != "finished"]
    done = f"{len(runs) - len(missing)} of {len(runs)} runs are finished"
    told = "".join(f"\n  {run['run']}: {run['reason']}" for run in missing if run["state"] == "failed")
    failed = f"; failed:{told}" if told else ""
    if missing and (asked or any(run["state"] == "stopped" for run in missing)):
        raise Preempted(f"the sweep in {folder} was stopped; {done}{failed}", hint="go on with the same command")
    if missing:
        raise MLPruneError(f"{done} in {folder}{failed}", hint="the same command tries these again")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted places."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
