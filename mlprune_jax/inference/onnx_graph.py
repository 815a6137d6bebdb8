"""The serving forward as an ONNX graph: the products of `mlprune_jax.inference.forward` in ONNX's operators.

Q, K and V are one product here too, the last layer answers for the first token alone where no other is read, and
updates of removed features are gathered from a zero column. Any batch, any length up to the model's positions.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.inference.forward import LayerParams, Linear, ModelParams, Norm, tokens_read
from mlprune_jax.models.bert import gelu_kind
from mlprune_jax.models.names import Kind

OPSET = 20  # the first with Gelu
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def build_graph(params: ModelParams, config: ModelConfig, kind: Kind) -> Any:
    """The model as an ``onnx.ModelProto``, float32, weights inside.

    Inputs are `INPUTS`, int64 ``[batch, length]`` each, rows padded on the right; the output ``logits`` is float32,
    ``[batch, num_labels]`` or ``[batch, length, 2]`` for spans.

    Args:
        params: dense float32 parameters of the serving forward, as `assemble` gives with ``pack=False``.
        config: their geometry.
        kind: of the head.
    """
    graph = _Graph()
    x = _embed(graph, params, config)
    padding = _padding(graph)
    for number, (layer, shape) in enumerate(zip(params.layers, config.layer_shapes, strict=True)):
        asking = tokens_read(params, number)
        context = _attention(graph, x, layer.qkv, padding, config, asking)
        if asking is not None:
            x = graph.node("Slice", x, graph.ints(0), graph.ints(asking), graph.ints(1))
        x = _add_into(graph, x, context, layer.attention_output, shape.attention_output, config.hidden_size)
        x = _norm(graph, x, layer.attention_norm, config)
        inner = _feed(graph, x, layer, config)
        x = _add_into(graph, x, inner, layer.ffn_output, shape.ffn_output, config.hidden_size)
        x = _norm(graph, x, layer.ffn_norm, config)
    if params.pooler is not None:
        first = graph.node("Squeeze", x, graph.ints(1))
        x = graph.node("Tanh", _linear(graph, first, params.pooler))
    _linear(graph, x, params.head, name="logits")
    sizes = ("batch", "length", 2) if kind == "span" else ("batch", len(params.head.bias))
    return graph.model(sizes)


class _Graph:
    """Nodes and constants as they are added; values are named by their number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, *inputs: str, name: str | None = None, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of its output, or of all where there are several."""
        from onnx import helper

        names = [name or f"{operator}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def model(self, sizes: tuple[str | int, ...]) -> Any:
        from onnx import TensorProto, helper

        given = [helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", "length")) for name in INPUTS]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
        graph = helper.make_graph(self.nodes, "bert", given, [logits], self.constants)
        operators = [helper.make_opsetid("", OPSET)]
        # The oldest format that has these operators: onnx's own newest is refused by runtimes older than it.
        oldest = helper.find_min_ir_version_for(operators)
        return helper.make_model(graph, opset_imports=operators, ir_version=oldest, producer_name="mlprune_jax")


def _embed(graph: _Graph, params: ModelParams, config: ModelConfig) -> str:
    words = graph.node("Gather", graph.constant(params.word), "input_ids")
    types = graph.node("Gather", graph.constant(params.token_type), "token_type_ids")
    length = graph.node("Shape", "input_ids", start=1, end=2)
    positions = graph.node("Slice", graph.constant(params.position), graph.ints(0), length)
    x = graph.node("Add", graph.node("Add", words, positions), types)
    return _norm(graph, x, params.norm, config)


def _padding(graph: _Graph) -> str:
    """What is added to attention's scores: 0, and for padding the lowest number, ``[batch, 1, 1, length]``."""
    real = graph.node("CastLike", "attention_mask", graph.constant(np.float32(1)))
    missing = graph.node("Sub", graph.constant(np.float32(1)), real)
    lowest = graph.constant(np.finfo(np.float32).min)
    return graph.node("Unsqueeze", graph.node("Mul", missing, lowest), graph.ints(1, 2))


def _attention(graph: _Graph, x: str, qkv: Linear, padding: str, config: ModelConfig, asking: int | None) -> str:
    head_dim = config.head_dim
    heads = qkv.weight.shape[1] // (3 * head_dim)
    split = graph.node("Split", _linear(graph, x, qkv), outputs=3, axis=2, num_outputs=3)
    query, key, value = (graph.node("Reshape", part, graph.ints(0, 0, heads, head_dim)) for part in split)
    if asking is not None:
        query = graph.node("Slice", query, graph.ints(0), graph.ints(asking), graph.ints(1))
    query, value = (graph.node("Transpose", part, perm=(0, 2, 1, 3)) for part in (query, value))
    scaled = graph.node("Mul", query, graph.constant(np.float32(head_dim**-0.5)))
    scores = graph.node("MatMul", scaled, graph.node("Transpose", key, perm=(0, 2, 3, 1)))
    weights = graph.node("Softmax", graph.node("Add", scores, padding), axis=-1)
    context = graph.node("Transpose", graph.node("MatMul", weights, value), perm=(0, 2, 1, 3))
    return graph.node("Reshape", context, graph.ints(0, 0, heads * head_dim))


def _feed(graph: _Graph, x: str, layer: LayerParams, config: ModelConfig) -> str:
    approximate = "none" if gelu_kind(config.hidden_act) == "gelu" else "tanh"
    return graph.node("Gelu", _linear(graph, x, layer.ffn), approximate=approximate)


def _add_into(graph: _Graph, x: str, inner: str, linear: Linear, kept: tuple[int, ...] | None, size: int) -> str:
    if kept is None:
        return graph.node("Add", x, _linear(graph, inner, linear))
    with_zero = Linear(jnp.pad(linear.weight, ((0, 0), (0, 1))), jnp.pad(linear.bias, (0, 1)))
    source = np.full(size, len(kept), np.int64)  # features that are not kept read the zero column
    source[list(kept)] = np.arange(len(kept))
    update = graph.node("Gather", _linear(graph, inner, with_zero), graph.constant(source), axis=-1)
    return graph.node("Add", x, update)


def _linear(graph: _Graph, x: str, linear: Linear, name: str | None = None) -> str:
    product = graph.node("MatMul", x, graph.constant(linear.weight))
    return graph.node("Add", product, graph.constant(linear.bias), name=name)


def _norm(graph: _Graph, x: str, norm: Norm, config: ModelConfig) -> str:
    scale, bias = graph.constant(norm.scale), graph.constant(norm.bias)
    return graph.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=config.layer_norm_eps)
