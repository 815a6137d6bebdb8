"""The same BERT in other runtimes, each as strong as it gets on a CPU; whatever is not installed is left out."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.onnx_graph import INPUTS, build_graph
from mlprune_jax.inference.runtime import Served

Call = Callable[[], Any]


def baselines(dtype: str, batch: int, length: int, threads: int) -> dict[str, Call]:
    """Forwards of a dense BERT-base classifier with random weights: name -> call.

    torch eager and compiled (scaled-dot-product attention, inference mode) in ``dtype``; ONNX Runtime with all graph
    optimisations, float32 only.
    """
    if find_spec("torch") is None:
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    ids = np.random.default_rng(0).integers(1, 30000, (batch, length))
    model = _torch_model(dtype)
    inputs = torch.from_numpy(ids), torch.ones(batch, length, dtype=torch.long)
    compiled = torch.compile(model)

    def run(module: Any) -> Call:
        def call() -> None:
            with torch.inference_mode():
                module(*inputs)

        return call

    calls = {"torch eager": run(model), "torch compiled": run(compiled)}
    if dtype == "float32" and find_spec("onnxruntime") is not None:
        calls["onnxruntime"] = _onnxruntime(model, inputs, threads)
    return calls


def _torch_model(dtype: str) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import BertConfig, BertForSequenceClassification

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertForSequenceClassification(BertConfig(attn_implementation="sdpa"))  # pyright: ignore[reportCallIssue]

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.bert(input_ids=ids, attention_mask=mask).logits

    torch.manual_seed(0)
    return Logits().eval().to(getattr(torch, dtype))


def exported(served: Served, batch: int, length: int, threads: int) -> Call:
    """ONNX Runtime on the file that `mlprune export --to onnx` writes of a model, float32, without padding."""
    params, config = assemble(served.params, served.masks, served.config, "float32", pack=False)
    ids = np.random.default_rng(0).integers(1, 30000, (batch, length))
    feed = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    return _session(build_graph(params, config, served.kind).SerializeToString(), feed, threads)


def _onnxruntime(model: Any, inputs: Any, threads: int) -> Call:
    import torch  # pyright: ignore[reportMissingImports]

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bert.onnx"
        torch.onnx.export(model, inputs, path, input_names=["ids", "mask"], dynamo=True, verbose=False)
        return _session(path, {"ids": inputs[0].numpy(), "mask": inputs[1].numpy()}, threads)


def _session(model: Path | bytes, feed: Mapping[Any, np.ndarray], threads: int) -> Call:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)
