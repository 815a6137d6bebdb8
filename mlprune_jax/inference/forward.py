"""The forward that serves: what `mlprune_jax.models.bert` computes, with fused products and no training in it.

Q, K and V are one product; attention is the platform's fused one on GPUs; each matrix is dense or block-sparse as its
plan says. `Bert` is the slow, obvious twin that tests compare with; `attend`, which both call, has tests of its own.

Axis names: B batch, L tokens, Q those of them that ask, D hidden size, N kept output features of a matrix,
H kept heads, K features of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.models.attention import attend
from mlprune_jax.models.bert import add_into, gelu_kind
from mlprune_jax.models.names import Kind
from pallas_kernels import BlockSparse, Implementation, block_sparse_matmul
from pallas_kernels.block_sparse_matmul.epilogue import Activation, finish
from pallas_kernels.block_sparse_matmul.xla import Unrolled, multiply

Hidden = Float[Array, "B L D"]


class Linear(NamedTuple):
    """A matrix, dense ``[d_in, d_out]``, packed or unrolled, and its bias ``[d_out]``."""

    weight: Any
    bias: Array


class Norm(NamedTuple):
    """Scale and bias of a layer norm, ``[d]`` each."""

    scale: Array
    bias: Array


class LayerParams(NamedTuple):
    """An encoder layer; ``qkv`` is the query, key and value matrices side by side."""

    qkv: Linear
    attention_output: Linear
    attention_norm: Norm
    ffn: Linear
    ffn_output: Linear
    ffn_norm: Norm


class ModelParams(NamedTuple):
    """A whole model; ``pooler`` is ``None`` for spans."""

    word: Array
    position: Array
    token_type: Array
    norm: Norm
    layers: tuple[LayerParams, ...]
    pooler: Linear | None
    head: Linear


class LayerPlan(NamedTuple):
    """Who computes each product of a layer; "dense" where the weight is a plain array."""

    qkv: Implementation = "dense"
    attention_output: Implementation = "dense"
    ffn: Implementation = "dense"
    ffn_output: Implementation = "dense"


@dataclass(frozen=True)
class Form:
    """What of a model is known when it is compiled.

    Attributes:
        config: its geometry.
        kind: of its head.
        dtype: of weights and of the operands of products; what a product, norm or softmax sums up is float32.
        plans: one for each layer.
        fused_attention: use the platform's fused attention (cuDNN).
        activations: dtype of what layers hand on, the sums along the layers included; pooler and head give float32.
    """

    config: ModelConfig
    kind: Kind
    dtype: str
    plans: tuple[LayerPlan, ...]
    fused_attention: bool
    activations: str


def forward(
    form: Form,
    params: ModelParams,
    input_ids: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    token_type_ids: Int[Array, "B L"],
) -> Float[Array, "..."]:
    """Logits of a batch.

    Args:
        form: static facts.
        params: in the form's dtype.
        input_ids: token ids, padded on the right.
        lengths: real tokens of each row, at least 1.
        token_type_ids: segment ids.

    Returns:
        Float32 ``[B, num_labels]``, or ``[B, L, 2]`` for spans, what lies beyond ``lengths`` included.
    """
    x = _embed(form, params, input_ids, token_type_ids)
    layers = zip(params.layers, form.plans, form.config.layer_shapes, strict=True)
    for number, (layer, plan, shape) in enumerate(layers):
        asking = tokens_read(params, number)
        qkv = _linear(form, x, layer.qkv, plan.qkv)
        context = attention(form, qkv, lengths, asking)
        update = _linear(form, context, layer.attention_output, plan.attention_output)
        x = _norm(form, add_into(x[:, :asking], update, shape.attention_output), layer.attention_norm)
        inner = _linear(form, x, layer.ffn, plan.ffn, gelu_kind(form.config.hidden_act))
        update = _linear(form, inner, layer.ffn_output, plan.ffn_output)
        x = _norm(form, add_into(x, update, shape.ffn_output), layer.ffn_norm)
    if params.pooler is not None:
        x = jnp.tanh(_linear(form, x[:, 0], params.pooler, out="float32"))  # the only token that there is
    return _linear(form, x, params.head, out="float32")


def tokens_read(params: ModelParams, layer: int) -> int | None:
    """How many tokens' output of a layer is read: the first one's of the last layer under a pooler; ``None``: all."""
    return 1 if params.pooler is not None and layer == len(params.layers) - 1 else None


def attention(
    form: Form, qkv: Float[Array, "B L N"], lengths: Int[Array, " B"], asking: int | None = None
) -> Float[Array, "B Q M"]:
    """Self-attention of the first ``asking`` tokens (all: ``None``) over the kept heads, from one fused projection."""
    batch, tokens, features = qkv.shape
    head_dim = form.config.head_dim
    heads = features // (3 * head_dim)
    split = qkv.astype(form.dtype).reshape(batch, tokens, 3, heads, head_dim)
    if form.fused_attention and asking is None:
        query, key, value = (split[:, :, i] for i in range(3))
        context = jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")
    else:
        query, key, value = split.transpose(2, 0, 3, 1, 4)
        real = jnp.arange(tokens)[None] < lengths[:, None]
        context = attend(query[:, :, :asking], key, value, real).transpose(0, 2, 1, 3)
    return context.reshape(batch, -1, heads * head_dim)


def _embed(form: Form, params: ModelParams, input_ids: Array, token_type_ids: Array) -> Hidden:
    x = params.word[input_ids] + params.position[: input_ids.shape[1]] + params.token_type[token_type_ids]
    return _norm(form, x, params.norm).astype(form.activations)


def _norm(form: Form, x: Float[Array, "*B D"], norm: Norm) -> Float[Array, "*B D"]:
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + form.config.layer_norm_eps)
    return (y * norm.scale + norm.bias).astype(x.dtype)


def _linear(
    form: Form,
    x: Array,
    linear: Linear,
    implementation: Implementation = "dense",
    activation: Activation | None = None,
    out: str | None = None,
) -> Array:
    out = out or form.activations
    weight, operand = linear.weight, x.astype(form.dtype)
    if isinstance(weight, Unrolled):
        y = multiply(operand.reshape(-1, operand.shape[-1]), weight, linear.bias, None, activation)
        return y.reshape(*x.shape[:-1], -1).astype(out)
    if isinstance(weight, BlockSparse):
        y = block_sparse_matmul(operand, weight, bias=linear.bias, activation=activation, implementation=implementation)
        return y.astype(out)
    product = jnp.matmul(operand, weight, preferred_element_type=jnp.float32)
    return finish(product, linear.bias, activation, None, out)
