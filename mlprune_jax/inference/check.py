"""Tile masks checked against the parameters that they were stored with."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import IntegrityError
from mlprune_jax.pruning.granularity import MATRICES, layer_path


def check_masks(params: dict[str, Any], masks: dict[str, Any], config: ModelConfig) -> None:
    """See that there is a tile mask for each of the six matrices of every layer, and that it tells the truth.

    Args:
        params: parameters as ``config`` describes them.
        masks: tile masks by parameter path.
        config: the model's geometry.

    Raises:
        IntegrityError: a mask that is missing, has no matrix, is not bool or does not divide it, that drops weights
            which are not zero, or block shapes of Q, K and V that differ.
    """
    layers = [layer_path(i) for i in range(config.num_hidden_layers)]
    wanted = {(*layer, *matrix.split("/"), "kernel") for layer in layers for matrix in MATRICES}
    found, weights = flatten_dict(masks), flatten_dict(params)
    if wrong := sorted("/".join(path) for path in wanted ^ set(found)):
        raise _damaged(
            f"every encoder matrix has a mask, and nothing else has; missing or extra: {', '.join(wrong[:3])}"
        )
    sides = {}
    for path, mask in found.items():
        weight = np.asarray(weights[path])
        sides[path] = _check_mask("/".join(path), weight, np.asarray(mask))
    for layer in layers:
        shapes = {sides[*layer, *matrix.split("/"), "kernel"] for matrix in MATRICES[:3]}
        if len(shapes) > 1:
            raise _damaged(f"{'/'.join(layer)}: query, key and value have tiles of {sorted(shapes)}, wanted one shape")


def _check_mask(name: str, weight: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """The block shape."""
    divides = mask.ndim == 2 and 0 not in mask.shape and not np.any(np.mod(weight.shape, mask.shape))
    if mask.dtype != bool or not divides:
        raise _damaged(f"{name} is {weight.shape}, its mask {mask.dtype} {mask.shape} is no bool tile mask of it")
    rows, columns = mask.shape
    tiles = weight.reshape(rows, weight.shape[0] // rows, columns, -1)
    dropped = np.any(tiles != 0, axis=(1, 3)) & ~mask
    if dropped.any():
        raise _damaged(f"{name}: {dropped.sum()} tiles are masked and hold weights that are not zero")
    return weight.shape[0] // rows, weight.shape[1] // columns


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(f"tile masks do not fit the weights: {what}", hint="take both of the original folder")
