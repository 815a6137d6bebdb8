"""Small files, replaced in one piece, and read back with one kind of error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlprune_jax.errors import IntegrityError

AnyPath = str | os.PathLike[str]

SUMMARY_AGAIN = "a summary.json may be removed: `mlprune resume` writes it again"


def write_text(path: Path, text: str) -> None:
    """Replace a file in one piece; a kill may leave one that `is_temporary` beside it.

    Raises:
        OSError: it cannot be written; the file is named, as the system does not where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_temporary(path: Path) -> bool:
    """Whether a file is named as those that `write_text` puts in place."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one piece."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """JSON as `write_json` writes it."""
    return json.dumps(value, indent=2) + "\n"


def home_path(path: AnyPath) -> Path:
    """A path as a user gives it: text or not, with ``~`` for a home."""
    return Path(os.path.expanduser(path))  # which, unlike its twin in Path, never raises


def whole_path(name: str) -> str:
    """A file or folder that exists, by its path from the root; any other name, a hub id say, as it is."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a run wrote.

    Raises:
        IntegrityError: it is absent or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint=f"take it from a copy; {SUMMARY_AGAIN}") from error
    return value
