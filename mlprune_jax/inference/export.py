"""Finished models for other software: transformers' folders, a function that jax alone runs, an ONNX file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlprune_jax.errors import ConfigError
from mlprune_jax.files import AnyPath, home_path
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.forward import Form, LayerPlan, forward
from mlprune_jax.inference.onnx_graph import INPUTS, OPSET, build_graph
from mlprune_jax.inference.runtime import Served
from mlprune_jax.inference.service import LoadedModel, load
from mlprune_jax.models.bert import DTYPES
from mlprune_jax.models.hf_config import read_config
from mlprune_jax.models.model_folder import STAGING, replaced_model, write_model_json
from mlprune_jax.models.pretrained import save_pretrained
from mlprune_jax.models.tokenizer_files import copy_tokenizer
from mlprune_jax.pruning.expand import expand

FUNCTION = "forward.stablehlo"
GRAPH = "model.onnx"
FACTS = "export.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_model(path: AnyPath, output: AnyPath, to: str, *, dtype: str = "float32") -> dict[str, Any]:
    """Write a finished model in another format, with its tokenizer.

    Args:
        path: a run's folder or a model folder.
        output: a new or empty folder.
        to: "hf", a dense Hugging Face folder in which what was removed is there again as zeros: any BERT code reads it
            and gives the same answers to the same tokens, at the dense model's size and speed. "stablehlo": see
            `export_function`. "onnx": an ONNX file of the same small model, which needs the package onnx (extra
            ``onnx``).
        dtype: of the weights and operands of "stablehlo".

    Returns:
        ``{"model", "output", "format", "bytes"}``.

    Raises:
        ConfigError: ``output`` is not empty, a format or dtype that there is not, or onnx is not installed.
        ModelError: ``output`` cannot be written; it stays as it was.
        DataError, ModelError, IntegrityError: see `mlprune_jax.inference.service.load`.
    """
    if to not in _WRITERS:
        raise ConfigError(f"models are exported to {' or '.join(_WRITERS)}, got {to!r}")
    write, dtypes = _WRITERS[to]
    if dtype not in dtypes:
        raise ConfigError(f"{to} is written in {' or '.join(dtypes)}, got {dtype!r}")
    output = home_path(output).resolve()
    if output.exists() and (not output.is_dir() or {file.name for file in output.iterdir()} - {STAGING}):
        raise ConfigError(f"{output} exists and is no empty folder", hint="choose another one with -o")
    model = load(path)
    with replaced_model(output) as staging:
        write(model, staging, dtype)
        copy_tokenizer(model.folder, staging)
    size = sum(file.stat().st_size for file in output.iterdir())
    return {"model": str(path), "output": str(output), "format": to, "bytes": size}


def export_function(served: Served, dtype: str = "float32") -> jax.export.Exported:
    """A model's forward with its weights inside, for any batch and any length up to its positions.

    It takes `INPUTS`, int32 ``[batch, length]`` each, rows padded on the right and at least one token long, and returns
    float32 logits, ``[batch, num_labels]`` or ``[batch, length, 2]`` for spans. Ids are not checked. Removed heads and
    rows are gone; masked tiles are zeros of dense products, as a block-sparse one is made for one number of tokens.

    Raises:
        IntegrityError: masks that do not fit the parameters.
    """
    params, config = assemble(served.params, served.masks, served.config, dtype, pack=False)
    plans = (LayerPlan(),) * config.num_hidden_layers
    form = Form(config, served.kind, dtype, plans, fused_attention=False, activations="float32")

    def answer(
        input_ids: Int[Array, "B L"], attention_mask: Int[Array, "B L"], token_type_ids: Int[Array, "B L"]
    ) -> Float[Array, "..."]:
        return forward(form, params, input_ids, attention_mask.sum(axis=1), token_type_ids)

    sizes = jax.export.symbolic_shape("batch, length", constraints=(f"length <= {config.max_position_embeddings}",))
    ids = jax.ShapeDtypeStruct(sizes, jnp.int32)
    return jax.export.export(jax.jit(answer), platforms=PLATFORMS)(ids, ids, ids)


def _write_folder(model: LoadedModel, output: Path, dtype: str) -> None:
    served = model.served
    params, config = expand(served.params, served.config)
    raw = read_config(model.folder).raw
    extra = {"mlprune": raw["mlprune"]} if "mlprune" in raw else None
    save_pretrained(output, config, params, kind=served.kind, labels=_labels(model), extra_config=extra)


def _write_function(model: LoadedModel, output: Path, dtype: str) -> None:
    exported = export_function(model.served, dtype)
    told = {"inputs": f"int32 {', '.join(INPUTS)}", "platforms": list(exported.platforms), "jax": jax.__version__}
    _write_file(model, output, FUNCTION, bytes(exported.serialize()), told | {"dtype": dtype})


def _write_graph(model: LoadedModel, output: Path, dtype: str) -> None:
    if find_spec("onnx") is None:
        raise ConfigError("an ONNX file needs the package onnx", hint="pip install 'mlprune_jax[onnx]'")
    served = model.served
    params, config = assemble(served.params, served.masks, served.config, dtype, pack=False)
    content = build_graph(params, config, served.kind).SerializeToString()
    told = {"inputs": f"int64 {', '.join(INPUTS)}", "opset": OPSET}
    _write_file(model, output, GRAPH, content, told | {"dtype": dtype})


def _write_file(model: LoadedModel, output: Path, name: str, content: bytes, told: dict[str, Any]) -> None:
    """A model in one file, and beside it what its caller must know."""
    served = model.served
    (output / name).write_bytes(content)
    sizes = {"max_length": max(model.usual_lengths()), "positions": served.config.max_position_embeddings}
    facts = {"kind": served.kind, "labels": _labels(model)}
    write_model_json(output / FACTS, {"file": name} | told | sizes | facts)


def _labels(model: LoadedModel) -> tuple[str, ...] | None:
    return model.labels if model.served.kind == "classification" else None


_WRITERS = {
    "hf": (_write_folder, ("float32",)),
    "stablehlo": (_write_function, tuple(DTYPES)),
    "onnx": (_write_graph, ("float32",)),
}
"""What writes each format, and the dtypes it has."""
