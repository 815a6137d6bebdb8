"""MLPruning in JAX/Flax: BERT-family encoders made small and fast by learned structured pruning.

Names are imported when they are first used, so that ``import mlprune_jax`` and the command line start without jax.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlprune_jax.config.distillation import Distillation
    from mlprune_jax.config.geometry import LayerShape, ModelConfig
    from mlprune_jax.config.loading import load_config
    from mlprune_jax.config.settings import RunConfig
    from mlprune_jax.inference.export import export_function, export_model
    from mlprune_jax.inference.pack import PackedDense, pack_params
    from mlprune_jax.inference.service import load
    from mlprune_jax.models.bert import Bert
    from mlprune_jax.models.pretrained import load_pretrained, save_pretrained
    from mlprune_jax.models.tasks import TaskModel
    from mlprune_jax.pipeline.evaluation import evaluate_folder, inspect_folder
    from mlprune_jax.pipeline.run import plan, resume, run
    from mlprune_jax.pruning.binarize import binarize
    from mlprune_jax.pruning.density import BlockCost, HeadRowCost, counted_budget, cut_scores, cut_to
    from mlprune_jax.pruning.expand import expand
    from mlprune_jax.pruning.granularity import HEAD, ROW, Granularity, block, find_groups
    from mlprune_jax.pruning.masks import (
        apply_masks,
        as_bool,
        compute_masks,
        init_scores,
        init_thresholds,
        masks_keeping,
    )
    from mlprune_jax.pruning.regularizer import add_density_penalty
    from mlprune_jax.pruning.shrink import shrink
    from mlprune_jax.training.losses import distillation_loss
    from pallas_kernels import block_sparse_matmul

_HOME = {
    "config.distillation": ("Distillation",),
    "config.geometry": ("LayerShape", "ModelConfig"),
    "config.loading": ("load_config",),
    "config.settings": ("RunConfig",),
    "inference.export": ("export_function", "export_model"),
    "inference.pack": ("PackedDense", "block_sparse_matmul", "pack_params"),
    "inference.service": ("load",),
    "models.bert": ("Bert",),
    "models.pretrained": ("load_pretrained", "save_pretrained"),
    "models.tasks": ("TaskModel",),
    "pipeline.evaluation": ("evaluate_folder", "inspect_folder"),
    "pipeline.run": ("plan", "resume", "run"),
    "pruning.binarize": ("binarize",),
    "pruning.density": ("BlockCost", "HeadRowCost", "counted_budget", "cut_scores", "cut_to"),
    "pruning.expand": ("expand",),
    "pruning.granularity": ("HEAD", "ROW", "Granularity", "block", "find_groups"),
    "pruning.masks": ("apply_masks", "as_bool", "compute_masks", "init_scores", "init_thresholds", "masks_keeping"),
    "pruning.regularizer": ("add_density_penalty",),
    "pruning.shrink": ("shrink",),
    "training.losses": ("distillation_loss",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "HEAD",
    "ROW",
    "Bert",
    "BlockCost",
    "Distillation",
    "Granularity",
    "HeadRowCost",
    "LayerShape",
    "ModelConfig",
    "PackedDense",
    "RunConfig",
    "TaskModel",
    "add_density_penalty",
    "apply_masks",
    "as_bool",
    "binarize",
    "block",
    "block_sparse_matmul",
    "compute_masks",
    "counted_budget",
    "cut_scores",
    "cut_to",
    "distillation_loss",
    "evaluate_folder",
    "expand",
    "export_function",
    "export_model",
    "find_groups",
    "init_scores",
    "init_thresholds",
    "inspect_folder",
    "load",
    "load_config",
    "load_pretrained",
    "masks_keeping",
    "pack_params",
    "plan",
    "resume",
    "run",
    "save_pretrained",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
