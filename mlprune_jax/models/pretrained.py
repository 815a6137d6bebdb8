"""Model folders in Hugging Face's layout, in and out: JSON and safetensors on one side, our tree on the other."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError, ModelError, NumericalError
from mlprune_jax.files import AnyPath, home_path
from mlprune_jax.models.hf_config import architectures, make_config, make_pruning, read_config, stored_labels
from mlprune_jax.models.matching import (
    check_labels,
    check_weights,
    fixed_labels,
    fresh_names,
    from_first_position,
    head_labels,
    recognised,
    without_other_heads,
)
from mlprune_jax.models.model_folder import CONFIG, PRUNING, check_folder, replaced_model, write_model_json
from mlprune_jax.models.names import HEADS, Entry, Kind, ParamPath, expected_shapes, tensor_table
from mlprune_jax.models.safetensors_io import open_weights, read_tensors, some, write_weights

__all__ = ["Pretrained", "expected_shapes", "load_pretrained", "resolve_model", "save_pretrained"]

_log = logging.getLogger(__name__)


class Pretrained(NamedTuple):
    """A loaded model.

    Attributes:
        config: its geometry.
        params: float32 numpy arrays in a plain nested dict, shaped as `expected_shapes` says.
        num_labels: output features of the head.
        labels: class names in the order of the head's outputs; None where the file names none, where the head is
            fresh, and for regression and spans.
        fresh_head: True where the folder had no head for this kind, so that it was initialised.
    """

    config: ModelConfig
    params: dict[str, Any]
    num_labels: int
    labels: tuple[str, ...] | None
    fresh_head: bool


def load_pretrained(folder: AnyPath, *, num_labels: int | None, kind: Kind, seed: int = 0) -> Pretrained:
    """Load a BERT from a folder with ``config.json`` and safetensors weights, Hugging Face's or ours, dense or shrunk.

    An encoder of another of the `FAMILIES` becomes a BERT that computes the same.
    Everything is checked against the config from the headers before any data is read. What a pre-trained encoder
    lacks, the head and with it the pooler, is drawn from N(0, initializer_range) and logged as a warning.

    Args:
        folder: the model folder.
        num_labels: outputs of the head; None takes those of the stored head (1 for regression, 2 for spans).
        kind: what the model is for; the head of another kind is left out.
        seed: of the fresh head and pooler.

    Raises:
        ConfigError: where ``num_labels`` is impossible for this kind.
        ModelError: where the folder is no BERT we run, is damaged, has missing, unexpected or misshapen tensors, or
            has a head with another number of labels.
    """
    folder = home_path(folder)
    check_labels(num_labels, kind)
    check_folder(folder)
    stored = read_config(folder)
    weights = recognised(open_weights(folder), folder, kind, stored.family)
    weights = without_other_heads(weights, architectures(stored.raw), folder)
    weights = from_first_position(weights, stored.first_position)
    num_labels = head_labels(weights, num_labels, kind, folder)
    if (layers := stored.config.num_hidden_layers) > len(weights):  # an absurd number would build an absurd table
        raise ModelError(f"{folder} has {layers} layers by {CONFIG} and {len(weights)} tensors: they do not fit")
    table = tensor_table(stored.config, num_labels=num_labels, kind=kind)
    fresh = fresh_names(weights, kind)
    there = [entry for entry in table if entry.name not in {*fresh, *stored.family.absent}]
    check_weights(weights, there, folder)

    entries = {entry.name: entry for entry in table}
    params: dict[str, Any] = {}
    for name, array in read_tensors({entry.name: weights[entry.name] for entry in there}):
        _insert(params, entries[name].path, _oriented(array, entries[name]))
    for name in stored.family.absent:
        _insert(params, entries[name].path, np.zeros(entries[name].shape, np.float32))
    for name, array in _initialised([entry for entry in table if entry.name in fresh], stored.config, seed):
        _insert(params, entries[name].path, array)
    if fresh:
        _log.warning("%s has no %s: initialised from seed %d, to be trained", folder, some(sorted(fresh)), seed)
    fresh_head = f"{HEADS[kind]}.weight" in fresh
    named = kind == "classification" and not fresh_head
    labels = stored_labels(stored, folder / CONFIG, num_labels) if named else None
    return Pretrained(stored.config, params, num_labels, labels, fresh_head)


def save_pretrained(
    folder: AnyPath,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    kind: Kind,
    labels: Sequence[str] | None = None,
    extra_config: dict[str, Any] | None = None,
    pruning: dict[str, Any] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a model folder that `load_pretrained` reads back bit for bit and, if dense, transformers loads.

    The new files are complete on disk before the old model is touched; see `replaced_model`.

    Args:
        folder: made where it does not exist; files that are not the model's stay.
        config: geometry; a shrunk one is written with ``pruning.json``.
        params: parameters, shaped as `expected_shapes` says; stored as float32.
        kind: the task head's kind.
        labels: class names of a classifier; LABEL_0, LABEL_1, ... where there are none.
        extra_config: further keys for ``config.json``; ours win.
        pruning: further keys for ``pruning.json``; its ``layers`` is always the config's.
        max_shard_bytes: split the weights above this many bytes; None writes one file.

    Raises:
        ConfigError: where ``labels`` or ``max_shard_bytes`` do not fit.
        ModelError: where the parameters do not fit the config, or the folder cannot be written.
        NumericalError: where a parameter holds NaN or infinity; nothing is written.
    """
    check_labels(None, kind)
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    leaves = dict(_flatten(params))
    num_labels = fixed_labels(kind) or np.size(leaves.get(("head", "bias"), ())) or 1
    table = tensor_table(config, num_labels=num_labels, kind=kind)
    tensors = _to_file(leaves, table)
    content = make_config(config, kind=kind, num_labels=num_labels, labels=labels, extra=extra_config)
    with replaced_model(home_path(folder)) as staging:
        write_weights(staging, tensors, max_shard_bytes)
        if (kept := make_pruning(config, pruning)) is not None:
            write_model_json(staging / PRUNING, kept)
        write_model_json(staging / CONFIG, content)


def resolve_model(model: str | Path, *, offline: bool = False) -> Path:
    """The folder of a model: a local one, or the download of a hub id.

    A `Path`, and a name that reads like one (``./x``, ``~/x``, absolute, more than one slash), is only looked for on
    disk; no other model is ever taken in its place.

    Args:
        model: folder, or hub id ``name`` or ``org/name``.
        offline: use only what was downloaded before.

    Raises:
        ModelError: where there is no such folder and the name cannot be a hub id, or the hub cannot give it.
    """
    name = str(model)
    try:
        path = Path(name).expanduser()
        exists = bool(name.strip()) and path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot use {name!r} as a model folder: {error}") from error
    if exists:
        check_folder(path)
        return path
    from mlprune_jax.data.hub import MODEL_ID, download_model  # the hub's side, which local folders do without

    if isinstance(model, Path) or not re.fullmatch(MODEL_ID, name) or ".." in name:
        raise ModelError(
            f"model not found: {name!r} is no folder here and cannot be a hub id",
            hint="Give a folder that exists, or a hub id such as google-bert/bert-base-uncased.",
        )
    return download_model(name, offline=offline)


def _initialised(entries: Sequence[Entry], config: ModelConfig, seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    # The head comes last in the table; drawn first, it is the same with and without a stored pooler.
    generator = np.random.default_rng(seed)
    for entry in reversed(entries):
        scale = config.initializer_range if entry.transposed else 0.0
        yield entry.name, (scale * generator.standard_normal(entry.shape)).astype(np.float32)


def _oriented(array: NDArray[np.float32], entry: Entry) -> NDArray[np.float32]:
    """Between a file's layout and ours, either way; the copy is contiguous, which safetensors does not check."""
    return np.ascontiguousarray(array.T) if entry.transposed else np.ascontiguousarray(array)


def _to_file(leaves: dict[ParamPath, Any], table: Sequence[Entry]) -> dict[str, NDArray[np.float32]]:
    """The parameters by Hugging Face name in the file's layout, checked against the table."""
    wanted = {entry.path: entry.shape for entry in table}
    faults = [f"{'/'.join(path)} missing" for path in wanted.keys() - leaves.keys()]
    faults += [f"{'/'.join(path)} unexpected" for path in leaves.keys() - wanted.keys()]
    faults += [
        f"{'/'.join(path)} {np.shape(leaf)} but {wanted[path]} by the config"
        for path, leaf in leaves.items()
        if path in wanted and np.shape(leaf) != wanted[path]
    ]
    if faults:
        raise ModelError(f"the parameters do not fit the model's config: {some(sorted(faults))}")
    tensors = {entry.name: _oriented(np.asarray(leaves[entry.path], np.float32), entry) for entry in table}
    if broken := [name for name, array in tensors.items() if not np.isfinite(array).all()]:
        raise NumericalError(f"the model was not saved, NaN or infinity in: {some(broken)}")
    return tensors


def _flatten(tree: Mapping[str, Any], prefix: ParamPath = ()) -> Iterator[tuple[ParamPath, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _insert(tree: dict[str, Any], path: ParamPath, value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
