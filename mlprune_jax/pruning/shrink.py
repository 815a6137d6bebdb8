"""Physical removal: masks cut out of parameters and geometry for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.granularity import HEAD, PARTS, ROW, Group, Path, find_groups, layer_path
from mlprune_jax.pruning.masks import Masks, Params

Ids = np.ndarray


def shrink(params: Params, masks: Masks, config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Remove what head and row masks cut; the smaller model computes what the masked one does.

    Removed heads leave Q, K, V and the inputs of O; removed FFN units leave FC1 and the inputs of FC2 (exact, since
    the bias is masked too and gelu(0) = 0); removed rows of O and FC2 leave their matrix, and the layer then adds
    into the kept features of the residual stream only.

    Args:
        params: a model's parameters as ``config`` describes them.
        masks: bool masks of head and row groups; layers or matrices without one are kept whole.
        config: the model's geometry, dense or already shrunk.

    Returns:
        Smaller parameters (numpy, nothing shared with ``params``) and the geometry that runs them; its ids are those of
        the dense model.

    Raises:
        ConfigError: a mask that keeps nothing, that has not one entry per unit, or that is none of heads or rows (tiles
            cannot be removed); masks of one group that differ, or a kernel's mask without its bias's.
    """
    layers, encoder = [], dict(params["bert"]["encoder"])
    groups = {group.name: group for group in find_groups(config, (HEAD, ROW))}
    found = {path: mask for path, mask in flatten_dict(dict(masks)).items() if mask is not None}
    for i, shape in enumerate(config.layer_shapes):
        name = layer_path(i)[-1]
        kept = _kept_units(found, groups, i)
        encoder[name] = _shrink_layer(encoder[name], kept, config.head_dim)
        layers.append(LayerShape(**{part: _compose(getattr(shape, part), ids) for part, ids in kept.items()}))
    if found:
        raise ConfigError(
            f"no head, row or FFN unit of this model is cut by the mask of {'/'.join(next(iter(found)))}",
            hint="tiles stay where they are: `apply_masks` zeroes them, and only whole heads and rows can leave",
        )
    # Copies throughout: what is donated later is not the caller's own.
    smaller = jax.tree.map(np.array, {**params, "bert": {**params["bert"], "encoder": encoder}})
    dense = all(shape == LayerShape() for shape in layers)
    return smaller, config.model_copy(update={"layers": () if dense else tuple(layers)})


def _kept_units(found: dict[Path, Any], groups: Mapping[str, Group], layer: int) -> dict[str, Ids | None]:
    """Positions kept in each part of a layer, ``None`` where nothing is removed; their masks leave ``found``."""
    kept: dict[str, Ids | None] = {}
    for part, name in PARTS.items():
        group = groups[f"layer_{layer}/{name}"]
        masks = {leaf: np.asarray(found.pop(leaf)) for leaf in group.leaves if leaf in found}
        kept[part] = _same_positions(masks, group, f"layer {layer}: the mask of {part}") if masks else None
    return kept


def _same_positions(masks: dict[Path, np.ndarray], group: Group, what: str) -> Ids | None:
    first, *others = masks.values()
    if len(masks) < len(group.leaves) or not all(np.array_equal(first, other) for other in others):
        leaves = ", ".join("/".join(leaf) for leaf in group.leaves)
        raise ConfigError(f"{what} must be there, and be the same, for all of {leaves}")
    if first.shape != group.units or not first.any():
        raise ConfigError(
            f"{what} needs {group.size} entries, one of them True at least; got shape {first.shape} with "
            f"{int(first.sum())} True"
        )
    return None if first.all() else np.flatnonzero(first)


def _compose(before: tuple[int, ...] | None, kept: Ids | None) -> tuple[int, ...] | None:
    """Positions in an already shrunk layer as ids of the dense one."""
    if kept is None:
        return before
    return tuple(int(i) for i in (kept if before is None else np.asarray(before)[kept]))


def _shrink_layer(layer: Params, kept: Mapping[str, Ids | None], head_dim: int) -> dict[str, Any]:
    heads = kept["heads"]
    inner = None if heads is None else (heads[:, None] * head_dim + np.arange(head_dim)).ravel()
    attention, ffn = dict(layer["attention"]), dict(layer["ffn"])
    for name in ("query", "key", "value"):
        attention[name] = _take(attention[name], outputs=inner)
    attention["output"] = _take(attention["output"], inputs=inner, outputs=kept["attention_output"])
    ffn["intermediate"] = _take(ffn["intermediate"], outputs=kept["ffn"])
    ffn["output"] = _take(ffn["output"], inputs=kept["ffn"], outputs=kept["ffn_output"])
    return {**layer, "attention": attention, "ffn": ffn}


def _take(matrix: Params, *, inputs: Ids | None = None, outputs: Ids | None = None) -> dict[str, Any]:
    kernel, bias = np.asarray(matrix["kernel"]), np.asarray(matrix["bias"])
    if inputs is not None:
        kernel = kernel[inputs]
    if outputs is not None:
        kernel, bias = kernel[:, outputs], bias[outputs]
    return {"kernel": kernel, "bias": bias}
