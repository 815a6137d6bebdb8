"""A model folder on disk: what may be in it, its JSON files, and replacing its files without a half-written state."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlprune_jax.errors import ModelError
from mlprune_jax.manifest import MANIFEST

CONFIG = "config.json"
PRUNING = "pruning.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MASKS = "masks.safetensors"

MAX_JSON_BYTES = 64 * 2**20

STAGING = ".saving"
_OWNED = re.compile(
    r"config\.json|mlprune\.manifest\.json|pruning\.json|masks\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
_REFUSED = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".pkl", ".ckpt"), ""),
    ".h5": "from_tf=True",
    ".msgpack": "from_flax=True",
}
"""Weight formats that are not read, with the option by which transformers 4 reads them."""


def check_folder(folder: Path) -> None:
    """See that ``folder`` is a folder with a config and safetensors weights.

    Raises:
        ModelError: where it is not; weights in a format that can run code on loading are refused with the way to
            convert them.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError as error:
        raise ModelError(f"model folder not found: {folder}", hint="Check the path.") from error
    except NotADirectoryError as error:
        hint = f"Give the folder that holds {CONFIG}."
        raise ModelError(f"{folder} is a file, not a model folder", hint=hint) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the model folder {str(folder)!r}: {error}") from error
    if not names:
        raise ModelError(f"model folder is empty: {folder}", hint=f"A model needs {CONFIG} and {WEIGHTS}.")
    has_weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    refused = [name for name in names if Path(name).suffix in _REFUSED]
    if refused and not has_weights:
        raise ModelError(
            f"{folder} has no safetensors weights, only {', '.join(refused[:5])}; these formats are not read here",
            hint=_conversion(folder, min(refused, key=lambda name: len(_REFUSED[Path(name).suffix]))),
        )
    absent = [name for name, there in ((CONFIG, (folder / CONFIG).is_file()), (WEIGHTS, has_weights)) if not there]
    if absent:
        inner = folder / "final"
        hint = f"Is it {inner}?" if (inner / CONFIG).is_file() else f"The folder holds: {', '.join(names[:8])}."
        raise ModelError(f"not a model folder: {folder} has no {' and no '.join(absent)}", hint=hint)


def _conversion(folder: Path, name: str) -> str:
    cls = "AutoModel"
    try:
        architecture = read_model_json(folder / CONFIG)["architectures"][0]
        if isinstance(architecture, str) and architecture.isidentifier():
            cls = architecture  # keeps the task head, which AutoModel would drop
    except (ModelError, LookupError, TypeError):
        pass
    option = _REFUSED[Path(name).suffix]
    return (
        f"Convert it once in an environment with {'transformers 4 and ' if option else 'transformers and '}torch:\n"
        f"    from transformers import {cls}\n"
        f'    {cls}.from_pretrained("{folder}"{", " + option if option else ""}).save_pretrained("NEW_FOLDER")'
    )


def model_digest(folder: Path) -> str:
    """Sha256 over the files that make up the model in a folder: of the same digest, the same model."""
    found = hashlib.sha256()
    owned = (path for path in folder.iterdir() if _OWNED.fullmatch(path.name) and path.name != MANIFEST)
    for path in sorted(owned):
        with path.open("rb") as stream:
            found.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def read_model_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: where the file is missing, above 64 MiB, not JSON, or not an object.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ModelError(f"{path} has {size} bytes, more than any model's; it was not read")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", hint="Copy or download the file again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def write_model_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as indented JSON; NaN and infinity are refused, as other readers do not know them."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def replaced_model(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write a model's files into, and put them in place when the block ends well.

    The files are complete and on disk before the old ones are touched. A model counts as one by its config.json, so
    this one goes first and comes last: killed in between, the folder is refused instead of mixing two models. Files of
    an earlier model that the new one does not have (shards, pruning.json) go; any other file stays.

    Args:
        folder: the model folder, made where it does not exist; where the block fails, it and what folders it lies in
            are gone again.

    Raises:
        ModelError: where the folder cannot be written.
    """
    staging = folder / STAGING  # inside: the folder may be another disk's, or where a shell stands
    absent = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if staging.exists():  # left by a killed run
            shutil.rmtree(staging)
        staging.mkdir()
        yield staging
        _publish(staging, folder)
    except OSError as error:
        hint = "see that the disk has space and can be written"
        raise ModelError(f"cannot write the model to {folder}: {error.strerror or error}", hint=hint) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for path in absent:
            with suppress(OSError):  # it holds the model, or was not made
                path.rmdir()


def _publish(staging: Path, folder: Path) -> None:
    new = sorted((path.name for path in staging.iterdir()), key=lambda name: (name == CONFIG, name))
    for name in new:
        _sync(staging / name)
    (folder / CONFIG).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _OWNED.fullmatch(path.name) and path.name not in new:
            path.unlink()
    for name in new:
        os.replace(staging / name, folder / name)
    _sync(folder)


def _sync(path: Path) -> None:
    """Have the kernel write a file or folder to disk, so that a power cut cannot reorder what follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
