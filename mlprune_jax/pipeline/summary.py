"""What a run reports: densities by count, what each layer keeps, and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.data.tasks import Task
from mlprune_jax.pruning.density import dense_size, encoder_size
from mlprune_jax.pruning.granularity import layer_path, matrix_shapes


def describe_model(config: ModelConfig, masks: dict[str, Any] | None) -> dict[str, Any]:
    """Densities and kept units of a model.

    Returns:
        ``density`` of the encoder and of its linear kernels alone, both over the dense encoder's, by count;
        ``encoder_parameters`` kept and dense; ``layers``: kept heads, rows and, with masks, tiles of each.
    """
    tiles = [_layer_tiles(config, masks, i) for i in range(config.num_hidden_layers)]
    removed = sum(tile["removed"] for layer in tiles for tile in layer.values())
    kept = encoder_size(config) - removed
    linear = encoder_size(config, biases=False) - removed
    layers = []
    for shape, layer in zip(config.layer_shapes, tiles, strict=True):
        entry: dict[str, Any] = {
            "heads": _size(shape.heads, config.num_attention_heads),
            "attention_output": _size(shape.attention_output, config.hidden_size),
            "ffn": _size(shape.ffn, config.intermediate_size),
            "ffn_output": _size(shape.ffn_output, config.hidden_size),
        }
        if layer:
            entry["blocks"] = {name: f"{tile['kept']}/{tile['of']}" for name, tile in layer.items()}
        layers.append(entry)
    return {
        "density": {
            "encoder": round(kept / dense_size(config), 6),
            "linear": round(linear / dense_size(config, biases=False), 6),
        },
        "encoder_parameters": {"kept": kept, "dense": dense_size(config)},
        "layers": layers,
    }


def _size(ids: tuple[int, ...] | None, full: int) -> int:
    return full if ids is None else len(ids)


def _layer_tiles(config: ModelConfig, masks: dict[str, Any] | None, layer: int) -> dict[str, dict[str, int]]:
    """Kept tiles, all tiles and removed weights of each matrix of a layer."""
    if masks is None:
        return {}
    node: Any = masks
    for key in layer_path(layer):
        node = node[key]
    found = {}
    for name, (d_in, d_out) in matrix_shapes(config, config.layer_shapes[layer]).items():
        group, matrix = name.split("/")
        mask = np.asarray(node[group][matrix]["kernel"])
        kept = int(mask.sum())
        found[name] = {"kept": kept, "of": mask.size, "removed": (mask.size - kept) * d_in * d_out // mask.size}
    return found


def summarize(config: RunConfig, task: Task, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of ``summary.json``; the final model is the last stage's, so what was found of that holds for it."""
    *_, last = stages.values()
    return {
        "task": task.name,
        "model": config.model,
        "seed": config.seed,
        "target_density": config.prune.density,
        "metric": task.metrics[0],
        "final": {k: v for k, v in last.items() if k not in ("seconds", "trainings")},
        "stages": {
            name: {k: v for k, v in report.items() if k not in ("layers", "trainings")}
            for name, report in stages.items()
        },
        "trainings": {name: speed for report in stages.values() for name, speed in report.get("trainings", {}).items()},
    }
