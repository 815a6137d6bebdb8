"""A run's folder: what lies where, written so that nothing half-done looks finished.

``config.resolved.yaml``, ``run.json``, ``metrics.jsonl``, ``stages/<name>/`` (a model folder, the
learned state, and last of all ``stage.json``), ``final/``, ``summary.json``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from mlprune_jax.config.loading import dump_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.errors import ConfigError, IntegrityError


class RunFolder:
    """Paths of a run's folder and the writing of its small files."""

    def __init__(self, root: Path):
        self.root = root
        self.final = root / "final"
        self.summary = root / "summary.json"
        self.resolved = root / "config.resolved.yaml"

    def check_unused(self) -> None:
        """See that a run can start here.

        Raises:
            ConfigError: the folder exists and is not empty.
        """
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ConfigError(
                f"{self.root} exists and is not empty",
                hint=f"continue it with `mlprune resume {self.root}`, or choose another folder with -o",
            )

    def create(self, config: RunConfig, command: str) -> None:
        """Start a folder that is new or empty.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {self.root}: {error}", hint="choose another folder with -o") from error
        write_text(self.resolved, dump_config(config))
        names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "mlprune_jax")
        self.describe(
            command=command,
            seed=config.seed,
            versions={"python": platform.python_version()} | {name: _version(name) for name in names},
            device=jax.devices()[0].device_kind,
            platform=platform.platform(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            state="running",
        )

    def clear(self) -> None:
        """Remove everything in the folder, not the folder itself."""
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def describe(self, **entries: Any) -> None:
        """Add entries to ``run.json``."""
        path = self.root / "run.json"
        write_json(path, (read_json(path) if path.exists() else {}) | entries)

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.root / "stages" / name

    def finished(self, name: str) -> dict[str, Any] | None:
        """What a finished stage reported, or ``None``; leftovers of an unfinished one are cleared away."""
        report = self.stage(name) / "stage.json"
        if report.is_file():
            return read_json(report)
        shutil.rmtree(self.stage(name), ignore_errors=True)
        return None

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with (self.root / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one piece."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one piece."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a run wrote.

    Raises:
        IntegrityError: it is absent or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="the run's folder is damaged") from error
    return value


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "not installed"
