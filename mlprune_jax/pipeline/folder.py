"""A run's folder: what lies where, written so that nothing half-done looks finished.

``config.resolved.yaml``, ``run.json``, ``metrics.jsonl``, ``stages/<name>/`` (a model folder, the learned state, and
last of all ``stage.json`` and a manifest), ``checkpoints/`` of the stage at work, ``final/``, ``summary.json``.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from mlprune_jax.config.loading import dump_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.errors import ConfigError, IntegrityError
from mlprune_jax.files import is_temporary, read_json, write_json, write_text
from mlprune_jax.manifest import MANIFEST, check_manifest, write_manifest
from mlprune_jax.report.json_text import finite
from mlprune_jax.training.processes import agree, first_alone, is_first
from pallas_kernels.device import hardware_name

_log = logging.getLogger(__name__)

REPORT = "stage.json"
SUMMARY = "summary.json"
LOCK = ".lock"
ARRAY = "array.npy"


def check_path(path: Path) -> None:
    """See that what is saved under a path can be read again.

    Raises:
        ConfigError: it has brackets or backslashes, which orbax reads as patterns.
    """
    if re.search(r"\[.*\]|\\", str(path.resolve())):
        raise ConfigError(
            f"{path}: checkpoints cannot be read again from a path with brackets or backslashes",
            hint="choose another folder with -o",
        )


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder but what a process leaves that is killed before it has written anything."""
    return all(path.name == LOCK or is_temporary(path) for path in folder.iterdir())


class RunFolder:
    """Paths of a run's folder and the writing of its small files.

    Of several processes, all of which must see the folder and call the same methods, the first alone writes.
    """

    def __init__(self, root: Path):
        self.root = root
        self.final = root / "final"
        self.summary = root / SUMMARY
        self.resolved = root / "config.resolved.yaml"
        self.checkpoints = root / "checkpoints"

    def check_unused(self) -> None:
        """See that a run can start here: it is empty, or one was killed in it before it began.

        Raises:
            ConfigError: the folder exists and is not empty.
        """
        check_path(self.root)
        first_alone(self._check_unused)

    def _check_unused(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"{self.root} is a file", hint="choose a new folder with -o")
        if self.root.exists() and not is_empty(self.root):
            goes_on = f"continue it with `mlprune resume {self.root}`, or " if self.resolved.exists() else ""
            raise ConfigError(f"{self.root} exists and is not empty", hint=f"{goes_on}choose another folder with -o")

    def create(self, config: RunConfig, command: str) -> None:
        """Write what a run begins with, inside `locked`."""
        first_alone(lambda: write_text(self.resolved, dump_config(config)))
        names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "mlprune_jax")
        self.describe(
            command=command,
            seed=config.seed,
            versions={"python": platform.python_version()} | {name: _version(name) for name in names},
            device=hardware_name(),
            devices=jax.device_count(),
            processes=jax.process_count(),
            platform=platform.platform(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            state="running",
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; the lock goes with the process, however that ends, where the file system has locks.

        Raises:
            ConfigError: the folder cannot be made or locked, or another process runs in it.
        """
        lock = FileLock(self.root / LOCK, timeout=0)
        first_alone(lambda: self._acquire(lock))
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: BaseFileLock) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {self.root}: {error}", hint="choose another folder with -o") from error
        try:
            lock.acquire()
        except Timeout as error:
            # Without the system's locks the file itself is one, and a process that is killed leaves it.
            left = f"; if none runs there any more, remove {lock.lock_file}" if isinstance(lock, SoftFileLock) else ""
            raise ConfigError(
                f"another process runs in {self.root}",
                hint=f"wait for it, stop it, or choose another folder with -o{left}",
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot lock {self.root}: {error}", hint="choose a folder of another file system with -o"
            ) from error

    def clear(self) -> None:
        """Remove everything in the folder, not the folder itself."""
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def describe(self, **entries: Any) -> None:
        """Add entries to ``run.json``; waits for nobody, so that a process that fails alone can say so."""
        path = self.root / "run.json"
        if not is_first():
            return
        stored = read_json(path) if path.exists() else {}
        if stored | entries != stored:
            write_json(path, stored | entries)

    def hold_to(self, identity: dict[str, Any]) -> None:
        """Store what all of the run depends on, at its start; later, see that it is the same.

        Raises:
            ConfigError: something of it has changed.
        """
        first_alone(lambda: self._hold_to(identity))

    def _hold_to(self, identity: dict[str, Any]) -> None:
        path = self.root / "run.json"
        stored = read_json(path).get("identity", identity) if path.exists() else identity
        if changed := [name for name, value in identity.items() if stored.get(name) != value]:
            raise ConfigError(
                f"{self.root} was begun with another {' and another '.join(changed)} than it has now",
                hint="put back what was changed (mlprune's version may be), or start a new run in another folder",
            )
        self.describe(identity=identity)

    def read_summary(self) -> dict[str, Any] | None:
        """What a finished run reported; ``None`` where there is nothing yet, or what is there is damaged."""
        try:
            return read_json(self.summary) if self.summary.is_file() else None
        except IntegrityError as error:
            _log.warning("%s; it is written again", error.message)
            return None

    def has_final(self) -> bool:
        """Whether the final model is what was written."""
        try:
            check_manifest(self.final)
        except IntegrityError as error:
            _log.warning("%s; it is written again", error.message)
            return False
        return True

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.root / "stages" / name

    def finished(self, name: str) -> dict[str, Any] | None:
        """What a finished stage reported, or ``None``; leftovers of an unfinished one are cleared away.

        Raises:
            IntegrityError: it is finished, and its files are not what it wrote.
        """
        path = self.stage(name)
        first_alone(lambda: self._check_finished(path))
        return read_json(path / REPORT) if path.is_dir() else None

    def _check_finished(self, path: Path) -> None:
        if (path / REPORT).is_file() and (path / MANIFEST).is_file():
            check_manifest(path, hint=f"take the files of a copy, or remove {path} to run the stage again")
        else:
            shutil.rmtree(path, ignore_errors=True)

    def recall(self, name: str, work: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that costs much to work out: kept beside the checkpoints, until its stage is finished.

        Args:
            name: of the array, the same only for the same one.
            work: works it out, on every process; called where it is not there, or damaged.
        """
        path = self.checkpoints / name
        if agree(int(first_alone(lambda: _is_whole(path)) or 0)):
            return np.load(path / ARRAY)
        found = work()

        def write() -> None:
            path.mkdir(parents=True, exist_ok=True)
            np.save(path / ARRAY, found)
            write_manifest(path)

        first_alone(write)
        return found

    def finish(self, name: str, report: dict[str, Any]) -> None:
        """Write a stage's report, and last of all the manifest that makes it finished; its checkpoints go."""

        def write() -> None:
            write_json(self.stage(name) / REPORT, report)
            write_manifest(self.stage(name))
            shutil.rmtree(self.checkpoints, ignore_errors=True)

        first_alone(write)

    def close(self, summary: dict[str, Any]) -> None:
        """Write the summary that makes the run finished."""

        def write() -> None:
            shutil.rmtree(self.checkpoints, ignore_errors=True)  # a kill can have left those of the last stage
            write_json(self.summary, summary)

        first_alone(write)

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``; what is not finite is null there."""
        if not is_first():
            return
        with (self.root / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite(entry)) + "\n")

    def forget_after(self, training: str, step: int) -> None:
        """Drop the lines of ``metrics.jsonl`` of steps that will be taken again."""
        first_alone(lambda: self._forget_after(training, step))

    def _forget_after(self, training: str, step: int) -> None:
        path = self.root / "metrics.jsonl"
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        entries = [(line, _entry(line)) for line in lines]
        kept = [line for line, entry in entries if entry and (entry["stage"] != training or entry["step"] <= step)]
        if damaged := sum(entry is None for _, entry in entries):
            _log.warning("%s: left out %d lines that a kill or a crash had damaged", path, damaged)
        write_text(path, "".join(kept))


def _is_whole(path: Path) -> bool:
    """Whether a folder is there and holds what was written."""
    if not path.is_dir():
        return False
    try:
        check_manifest(path)
    except IntegrityError as error:
        _log.warning("%s; it is worked out again", error.message)
        return False
    return True


def _entry(line: str) -> dict[str, Any] | None:
    """A line of ``metrics.jsonl``, or ``None`` where it is not whole."""
    try:
        entry = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"stage", "step"} <= entry.keys() else None


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "not installed"
