"""A model's speed side by side: dense, shrunk and run dense, and block-sparse, interleaved in one run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.files import AnyPath, home_path, write_json
from mlprune_jax.inference.plan import Decision
from mlprune_jax.inference.runtime import CompiledModel, Served, compile_model, default_dtype
from mlprune_jax.inference.service import load
from mlprune_jax.models.names import Kind, expected_shapes
from mlprune_jax.pruning.density import dense_size, encoder_size
from mlprune_jax.pruning.granularity import format_block
from pallas_kernels import Implementation, KernelError
from pallas_kernels.block_sparse_matmul.calibrate import BLOCKS, SHAPES, calibrate, usual_dtypes
from pallas_kernels.block_sparse_matmul.costs import CostTable, user_table_path
from pallas_kernels.device import hardware_name
from pallas_kernels.timing import measure_interleaved, ratio

_log = logging.getLogger(__name__)

BLOCK_SPARSE = "block-sparse"
TOO_SLOW = "measured to gain too little"
LENGTH = 128
"""Tokens of a row where nothing else is asked for, or as many as the model has positions."""


def bench_to_file(
    path: AnyPath,
    output: AnyPath | None,
    *,
    batches: Sequence[int],
    lengths: Sequence[int] | None = None,
    dtype: str | None = None,
    rounds: int = 10,
    implementation: Implementation | None = None,
) -> dict[str, Any]:
    """Time a finished model against its dense original and store what was measured.

    Args:
        path: a finished run, or a model folder.
        output: JSON file; unset: ``bench.json`` in a run's folder, nothing for a model folder.
        batches, lengths: every pair is measured, all rows full; lengths unset: `LENGTH`.
        dtype: of weights and operands, the same for all variants; unset: the device's usual (`default_dtype`).
        rounds: measurements of each variant per pair.
        implementation: of all packed matrices; ``None`` picks by measured cost.

    Returns:
        ``{"model", "hardware", "jax", "date", "dtype", "rounds", "rows", "decisions"}``: rows as of `measure`, and
        which matrix of the model as it is served runs how, and why.

    Raises:
        ConfigError: an output that cannot be written, or what `compile_model` refuses; before anything is timed.
    """
    dtype = dtype or default_dtype()
    path, output = home_path(path), None if output is None else home_path(output)
    if output is None and (path / "run.json").is_file():
        output = path / "bench.json"
    if output is not None:
        _check_output(output)
    served = load(path).served
    lengths = lengths or [min(LENGTH, served.config.max_position_embeddings)]
    described = {"model": str(path), "hardware": hardware_name(), "jax": jax.__version__}
    result = {**described, "date": time.strftime("%Y-%m-%d"), "dtype": dtype, "rounds": rounds, "rows": []}
    compiled = compile_variants(served, batches, lengths, dtype, implementation)
    *_, model = compiled.values()  # the last variant is the model as it is served
    result["decisions"] = [_describe(d, bucket) for bucket in model.buckets for d in model.decisions(*bucket)]
    for batch, length in product(batches, lengths):
        for row in measure(compiled, batch, length, rounds, served.config.vocab_size):
            result["rows"].append(row)
            _log.info("%(variant)s %(batch)dx%(length)d: %(p50_ms).1f ms, %(speedup_within_rounds).2fx dense", row)
        if output is not None:
            write_json(output, result)
    return result


def _check_output(path: Path) -> None:
    hint = "name another file with -o"
    if path.is_dir():
        raise ConfigError(f"{path} cannot be written: it is a folder", hint=hint)
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # as `write_json` needs one beside it
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}", hint=hint) from error


def _describe(decision: Decision, bucket: tuple[int, int]) -> dict[str, Any]:
    """A decision as plain data."""
    return {
        "batch": bucket[0],
        "length": bucket[1],
        "layer": decision.layer,
        "product": decision.product,
        "matrix": format_block(decision.shape),
        "block": format_block(decision.block_shape) if decision.block_shape else None,
        "density": round(decision.density, 4),
        "tokens": decision.tokens,
        "implementation": decision.choice.implementation,
        "reason": decision.choice.reason,
    }


def calibrate_device(seconds: float) -> dict[str, Any]:
    """Measure this device's products, for so many seconds, and store them where the dispatcher looks for them.

    Returns:
        ``{"table", "measured"}``: its file, and for each dtype and block shape how many products of each matrix the
        table has now, 0 where time ran out before.

    Raises:
        ConfigError: the table has no place, or no sparse product runs on this device.
    """
    try:
        path = user_table_path(hardware_name())
        path.parent.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:  # there is no home, or none that may be written to
        raise ConfigError(f"this device's table has no place: {error}", hint="set XDG_CACHE_HOME") from error
    try:
        details = {"command": "mlprune bench --calibrate"}
        table = calibrate(path, seconds_limit=seconds, details=details, report=_log.info)
    except KernelError as error:
        raise ConfigError(f"this device cannot be calibrated: {error}") from error
    return {"table": str(path), "measured": _count_products(table)}


def _count_products(table: CostTable) -> list[dict[str, Any]]:
    counts = Counter((entry.dtype, entry.block_shape, entry.shape) for entry in table.entries)
    return [
        {"dtype": dtype, "block": format_block(block)}
        | {format_block(shape): counts[dtype, block, shape] for shape in SHAPES}
        for dtype, block in product(usual_dtypes(), BLOCKS)
    ]


def compile_variants(
    served: Served,
    batches: Sequence[int],
    lengths: Sequence[int],
    dtype: str,
    implementation: Implementation | None = None,
) -> dict[str, CompiledModel]:
    """The variants of a model, each compiled for every batch and length; see `variants`.

    Raises:
        ConfigError: an implementation is asked for and the model has no block-sparse products.
    """
    models = variants(served)
    if implementation not in (None, "dense") and BLOCK_SPARSE not in models:
        raise ConfigError(f"implementation {implementation!r} was asked for, but the model has no block-sparse matrix")
    return {
        name: compile_model(
            model,
            batch_sizes=batches,
            lengths=lengths,
            dtype=dtype,
            implementation=implementation if name == BLOCK_SPARSE else None,
        )
        for name, model in models.items()
    }


def variants(served: Served) -> dict[str, Served]:
    """What is compared: the dense original's geometry, the model run as dense weights, and the model packed.

    The original has random weights, which take the same time as trained ones.
    """
    found = {}
    if encoder_size(served.config) != dense_size(served.config) or served.masks is not None:
        config = served.config.model_copy(update={"layers": ()})
        params = random_params(config, len(served.params["head"]["bias"]), served.kind)
        found["dense"] = Served(config, params, None, served.kind)
    name = "shrunk" if found else "dense"
    found[name] = served._replace(masks=None)
    if served.masks is not None:
        found[BLOCK_SPARSE] = served
    return found


def random_params(config: ModelConfig, num_labels: int, kind: Kind) -> dict[str, Any]:
    """Small random parameters (numpy, float32) of a whole model, made without compiling its initialisation."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(config, num_labels=num_labels, kind=kind)
    scale = np.float32(config.initializer_range)
    return unflatten_dict({path: scale * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


def measure(
    compiled: dict[str, CompiledModel], batch: int, length: int, rounds: int, vocab_size: int
) -> Iterator[dict[str, Any]]:
    """Time the variants in turn on one full batch.

    Yields:
        For each: ``variant``, ``batch``, ``length``, ``p50_ms``, ``p90_ms``, ``sentences_per_second``,
        ``speedup_within_rounds`` over dense (the median of each round's ratio, not the ratio of the medians),
        ``parameter_mb``, ``activation_mb``, ``products``: how many of the encoder's products each implementation runs.
        Of a block-sparse model in which nothing sparse runs also ``note``, see `why_dense`.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab_size, (batch, length), np.int32)
    full = np.full(batch, length, np.int32)
    calls = {name: (lambda model=model: model.logits(ids, full)) for name, model in compiled.items()}
    timings = measure_interleaved(calls, rounds=rounds)
    for name, timing in timings.items():
        memory = compiled[name].memory(batch, length)
        decisions = compiled[name].decisions(batch, length)
        products = Counter(decision.choice.implementation for decision in decisions)
        row = {
            "variant": name,
            "batch": batch,
            "length": length,
            "p50_ms": round(timing.p50 * 1e3, 3),
            "p90_ms": round(timing.p90 * 1e3, 3),
            "sentences_per_second": round(batch / timing.p50, 1),
            "speedup_within_rounds": round(ratio(timings["dense"], timing), 3),
            "parameter_mb": round(memory["parameters"] / 2**20, 1),
            "activation_mb": round(memory["activations"] / 2**20, 1),
            "products": dict(products),
        }
        if name == BLOCK_SPARSE and (note := why_dense(decisions)):
            row["note"] = note
        yield row


def why_dense(decisions: Iterable[Decision]) -> str | None:
    """Why no product runs sparse, each cause with how many have it; ``None`` where one does."""
    choices = [decision.choice for decision in decisions]
    if any(choice.implementation != "dense" for choice in choices):
        return None
    heads = Counter(choice.reason.partition(":")[0] for choice in choices)
    causes = {TOO_SLOW if head == "measured" else head: count for head, count in heads.items()}
    return "all products dense: " + ", ".join(f"{cause} ({count})" for cause, count in causes.items())
