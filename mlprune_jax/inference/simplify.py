"""What tile masks leave idle, removed exactly: the packed model gets smaller before any kernel is chosen.

A tile mask can leave an FFN unit without inputs or without outputs, and a head without values or without outputs. What
has no outputs is not needed. What has no inputs is constant: an FFN unit is ``gelu(bias)``, and a head is its value
bias, since attention probabilities sum to one. Constants move into the bias of the next matrix.
"""

from __future__ import annotations

from math import lcm
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.models.bert import activation
from mlprune_jax.pruning.granularity import HEAD, MATRICES, ROW, find_groups, layer_path
from mlprune_jax.pruning.masks import spread
from mlprune_jax.pruning.shrink import shrink

Layer = dict[str, Any]


class Masked(NamedTuple):
    """A model whose encoder matrices carry tile masks.

    Attributes:
        params: its parameters, zero wherever a tile is masked.
        masks: bool tile masks of all six matrices of every layer, as `mlprune_jax.apply_masks` takes them.
        config: its geometry.
    """

    params: dict[str, Any]
    masks: dict[str, Any]
    config: ModelConfig


class _Coupling(NamedTuple):
    """Features that one matrix writes and another reads; what is idle there can leave all of them.

    Attributes:
        writers: matrices that lose columns; the last one's column decides whether a feature is constant.
        reader: the matrix that loses rows.
        group: the heads' or the units' group in a layer, as `find_groups` names it.
    """

    writers: tuple[str, ...]
    reader: str
    group: str


_HEADS = _Coupling(MATRICES[:3], MATRICES[3], "attention")
_UNITS = _Coupling(MATRICES[4:5], MATRICES[5], "ffn")


def simplify(model: Masked) -> Masked:
    """The same function without the heads and FFN units that its tile masks leave idle.

    They go in groups that keep every remaining tile whole, and one group of each kind stays in every layer.

    Args:
        model: parameters, tile masks and geometry.

    Returns:
        Smaller parameters, the tiles that are left, and the geometry that runs them; ``model`` itself where nothing is
        idle.
    """
    encoder, masks = dict(model.params["bert"]["encoder"]), dict(model.masks["bert"]["encoder"])
    keep: dict[str, np.ndarray] = {}
    for i in range(model.config.num_hidden_layers):
        name = layer_path(i)[-1]
        for coupling, unit in ((_HEADS, model.config.head_dim), (_UNITS, 1)):
            idle = _idle_features(encoder[name], masks[name], coupling, unit)
            if not idle.any():
                continue
            encoder[name] = _fold_constants(encoder[name], idle, coupling, model.config)
            masks[name] = _cut_tiles(masks[name], encoder[name], ~idle, coupling)
            keep[f"{name}/{coupling.group}"] = ~idle.reshape(-1, unit)[:, 0]
    if not keep:
        return model
    params = {**model.params, "bert": {**model.params["bert"], "encoder": encoder}}
    groups = tuple(group for group in find_groups(model.config, (HEAD, ROW)) if group.name in keep)
    smaller, config = shrink(params, spread(groups, keep), model.config)
    return Masked(smaller, {"bert": {"encoder": masks}}, config)


def _idle_features(layer: Layer, masks: Layer, coupling: _Coupling, unit: int) -> np.ndarray:
    """True for the features that can go, in whole groups of ``unit`` and of all tiles that touch them."""
    sides = [_sides(layer, masks, name)[1] for name in coupling.writers] + [_sides(layer, masks, coupling.reader)[0]]
    group = lcm(unit, *sides)
    constant = ~_get(masks, coupling.writers[-1], "kernel").any(0).repeat(sides[-2])
    unread = ~_get(masks, coupling.reader, "kernel").any(1).repeat(sides[-1])
    idle = np.all((constant | unread).reshape(-1, group), axis=1)
    if idle.all():
        idle[0] = False
    return idle.repeat(group)


def _fold_constants(layer: Layer, idle: np.ndarray, coupling: _Coupling, config: ModelConfig) -> Layer:
    """The layer with what its idle features add, the same for every input, in the reader's bias.

    Idle features that are not read have zero rows in the reader, so they add nothing here either.
    """
    value = _get(layer, coupling.writers[-1], "bias")
    if coupling is _UNITS:
        value = np.asarray(activation(config.hidden_act)(jnp.asarray(value)))
    added = np.where(idle, value, np.zeros_like(value)) @ _get(layer, coupling.reader, "kernel")
    return _replaced(layer, coupling.reader, "bias", _get(layer, coupling.reader, "bias") + added)


def _cut_tiles(masks: Layer, layer: Layer, stays: np.ndarray, coupling: _Coupling) -> Layer:
    """Tile masks without the tiles of the features that go; ``layer`` still has them."""
    sides = {name: _sides(layer, masks, name) for name in (*coupling.writers, coupling.reader)}
    for name in coupling.writers:
        masks = _replaced(masks, name, "kernel", _get(masks, name, "kernel")[:, stays[:: sides[name][1]]])
    name = coupling.reader
    return _replaced(masks, name, "kernel", _get(masks, name, "kernel")[stays[:: sides[name][0]]])


def _sides(layer: Layer, masks: Layer, name: str) -> tuple[int, int]:
    """``(block_in, block_out)`` of a matrix."""
    (d_in, d_out), (rows, columns) = _get(layer, name, "kernel").shape, _get(masks, name, "kernel").shape
    return d_in // rows, d_out // columns


def _get(layer: Layer, name: str, leaf: str) -> np.ndarray:
    group, matrix = name.split("/")
    return np.asarray(layer[group][matrix][leaf])


def _replaced(layer: Layer, name: str, leaf: str, value: Any) -> Layer:
    group, matrix = name.split("/")
    return {**layer, group: {**layer[group], matrix: {**layer[group][matrix], leaf: value}}}
