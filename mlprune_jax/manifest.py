"""Manifests: size and sha256 of every file of a folder, so that damage is found before anything is used.

Neither orbax nor safetensors notices a flipped bit. A manifest is written last, so a folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mlprune_jax.errors import IntegrityError
from mlprune_jax.files import is_temporary, json_text, read_json, write_json

MANIFEST = "mlprune.manifest.json"
SCHEMA = 1
SHOWN = 5  # damaged files named in one message


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write down what the folder holds, subfolders included, and ``facts`` beside it.

    What `write_text` was killed over is left out: the next write of the same file takes its place, and it is gone.
    """
    found = (path for path in folder.rglob("*") if path.is_file() and not is_temporary(path))
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    files = {name: _describe(folder / name) for name in names if name != MANIFEST}
    content = {"schema": SCHEMA, **facts, "files": files}
    write_json(folder / MANIFEST, content | {"sha256": _digest_of(content)})


def check_manifest(folder: Path, *, hint: str = "take the files of a copy") -> dict[str, Any]:
    """See that every file is what was written; files that came later are nobody's business.

    Args:
        folder: what `write_manifest` described.
        hint: what to do where files are damaged.

    Returns:
        The manifest: its facts, and ``files``.

    Raises:
        IntegrityError: no manifest, one of another version, or files that are missing or changed, by name.
    """
    stored = read_json(folder / MANIFEST)
    written = json_text(stored)
    if (folder / MANIFEST).read_bytes() != written.encode() or stored.pop("sha256", None) != _digest_of(stored):
        raise IntegrityError(f"{folder} is damaged: its {MANIFEST} has changed")
    if stored.get("schema") != SCHEMA or not isinstance(stored.get("files"), dict):
        raise IntegrityError(
            f"{folder / MANIFEST} is of schema {stored.get('schema')!r}; this version reads {SCHEMA}",
            hint="use the version of mlprune_jax that wrote it",
        )
    damaged = [told for name, wanted in stored["files"].items() if (told := _compare(folder, name, wanted))]
    if damaged:
        more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise IntegrityError(f"{folder} is damaged: {', '.join(damaged[:SHOWN])}{more}", hint=hint)
    return stored


def _compare(folder: Path, name: str, wanted: list[Any]) -> str | None:
    """What is wrong with a file, or ``None``."""
    try:
        found = _describe(folder / name)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    if found[0] != wanted[0]:
        return f"{name} has {found[0]} bytes instead of {wanted[0]}"
    return None if found == wanted else f"{name} has changed"


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> list[Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return [path.stat().st_size, digest]
