"""Safetensors weights of a model folder, in one file or in shards: headers checked first, data read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlprune_jax.errors import ModelError
from mlprune_jax.models.model_folder import INDEX, WEIGHTS, read_model_json, write_model_json

FLOATS = ("F32", "F16", "BF16")
"""The stored number formats that are read; all become float32."""

_DAMAGED = "The file is cut short or damaged; copy or download it again."


class Stored(NamedTuple):
    """Where one tensor lies: its file, the name it has there, its shape and safetensors dtype (``F32``).

    In the file ``skipped`` rows come before it, which are read past.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    skipped: int = 0

    def without_rows(self, count: int) -> Stored:
        """The same tensor without its first rows, which it may not have."""
        rows = tuple(max(size - count, 0) for size in self.shape[:1])
        return self._replace(shape=rows + self.shape[1:], skipped=self.skipped + count)


def open_weights(folder: Path) -> dict[str, Stored]:
    """What the weights of a folder hold, by name in the file, from headers alone.

    ``model.safetensors`` is taken where both it and an index exist, as Hugging Face does.

    Raises:
        ModelError: where a header is damaged, a shard is missing or named outside the folder, or the index and the
            shards disagree.
    """
    if (folder / WEIGHTS).is_file():
        return _read_header(folder / WEIGHTS)
    weight_map = _read_weight_map(folder / INDEX)
    found: dict[str, Stored] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing, and {INDEX} needs it", hint="Copy all shards together.")
        header = _read_header(folder / name)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        if differ := sorted(listed ^ header.keys()):
            raise ModelError(
                f"{INDEX} and {folder / name} disagree on {len(differ)} tensors: {some(differ)}",
                hint="The shards are of another model or download; copy the whole folder again.",
            )
        found |= header
    return found


def _read_weight_map(path: Path) -> dict[str, str]:
    weight_map = read_model_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} has no weight_map from tensor names to files")
    for file in weight_map.values():
        plain = isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\:\0")
        if not plain or ".." in file:
            raise ModelError(
                f"{path} names {file!r} as a shard; only plain .safetensors names inside the folder are read",
                hint="Do not use this checkpoint unless you know why its index points elsewhere.",
            )
    return weight_map


def _read_header(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, "np") as file:
            slices = ((name, file.get_slice(name)) for name in file.offset_keys())
            return {name: Stored(path, name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}", hint=_DAMAGED) from error


def read_tensors(wanted: Mapping[str, Stored]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each wanted tensor as float32 under its key, file by file; dtypes must be among `FLOATS`.

    Raises:
        ModelError: where a file cannot be read or a tensor holds NaN or infinity.
    """
    for path in sorted({stored.file for stored in wanted.values()}):
        try:
            with safe_open(path, "np") as file:
                for key, stored in wanted.items():
                    if stored.file == path:
                        yield key, _finite(file.get_tensor(stored.name)[stored.skipped :], stored)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot read {path}: {error}", hint=_DAMAGED) from error


def _finite(tensor: NDArray[Any], stored: Stored) -> NDArray[np.float32]:
    array = tensor.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ModelError(f"{stored.name} in {stored.file} holds NaN or infinity", hint="The checkpoint is unusable.")
    return array


def write_weights(folder: Path, tensors: dict[str, NDArray[np.float32]], max_shard_bytes: int | None) -> None:
    """Write tensors as one file, or as shards with an index where they exceed ``max_shard_bytes``.

    Args:
        folder: a folder without weights.
        tensors: C-contiguous arrays by Hugging Face name; shards keep their order.
        max_shard_bytes: bytes of tensor data per shard; a larger tensor gets a shard of its own.

    Raises:
        ModelError: where a file cannot be written.
    """
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, shards[0])
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    metadata = {
        "total_parameters": sum(array.size for array in tensors.values()),
        "total_size": sum(array.nbytes for array in tensors.values()),
    }
    write_model_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _split(tensors: dict[str, NDArray[Any]], max_shard_bytes: int | None) -> list[dict[str, NDArray[Any]]]:
    shards: list[dict[str, NDArray[Any]]] = [{}]
    used = 0
    for name, array in tensors.items():
        if max_shard_bytes is not None and shards[-1] and used + array.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = array
        used += array.nbytes
    return shards


def write_tensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Write one safetensors file of arrays by name, readable to whom the user's other files are.

    Raises:
        ModelError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # the user's; safetensors gives its files to the owner alone
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ModelError(f"cannot write {path}: {error}") from error
    path.chmod(mode)


def some(items: Sequence[str], limit: int = 10) -> str:
    """The first items as text, and how many there are in all; names out of files are made safe to print."""
    shown = ", ".join(item if item.isprintable() and len(item) < 200 else ascii(item[:200]) for item in items[:limit])
    return shown + (f", ... ({len(items)} in all)" if len(items) > limit else "")
