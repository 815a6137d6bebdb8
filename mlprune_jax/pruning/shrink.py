"""Physical removal: masks cut out of parameters and geometry for good (METHOD: shrinking)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.granularity import layer_path, matrix_shapes
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
        Smaller parameters (numpy) and the geometry that runs them; its ids are those of the dense model.

    Raises:
        ConfigError: a mask that keeps nothing, or that has not one entry per unit.
    """
    layers, encoder = [], dict(params["bert"]["encoder"])
    for i, shape in enumerate(config.layer_shapes):
        name = layer_path(i)[-1]
        kept = _kept_units(masks, config, i)
        encoder[name] = _shrink_layer(encoder[name], kept, config.head_dim)
        layers.append(LayerShape(**{part: _compose(getattr(shape, part), ids) for part, ids in kept.items()}))
    smaller = {**params, "bert": {**params["bert"], "encoder": encoder}}
    dense = all(shape == LayerShape() for shape in layers)
    return smaller, config.model_copy(update={"layers": () if dense else tuple(layers)})


def _kept_units(masks: Masks, config: ModelConfig, layer: int) -> dict[str, Ids | None]:
    """Positions kept in each part of a layer; ``None`` where nothing is removed."""
    shapes = matrix_shapes(config, config.layer_shapes[layer])
    places = {
        "heads": ("attention/query", config.head_dim),
        "attention_output": ("attention/output", 1),
        "ffn": ("ffn/intermediate", 1),
        "ffn_output": ("ffn/output", 1),
    }
    kept: dict[str, Ids | None] = {}
    for part, (matrix, unit) in places.items():
        mask = _find(masks, (*layer_path(layer), *matrix.split("/"), "bias"))
        if mask is not None and (np.shape(mask) != (shapes[matrix][1] // unit,) or not np.any(mask)):
            raise ConfigError(
                f"layer {layer}: the mask of {part} needs {shapes[matrix][1] // unit} entries, one of them True at "
                f"least; got shape {np.shape(mask)} with {int(np.sum(mask))} True"
            )
        kept[part] = None if mask is None or np.all(mask) else np.flatnonzero(mask)
    return kept


def _find(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


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
