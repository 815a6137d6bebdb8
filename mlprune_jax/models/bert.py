"""BERT in Flax linen, one file; it knows per-layer sizes and nothing about masks.

Axis names: B batch, L tokens, Q those of them that ask (all of them, or of a last layer the first), D hidden size,
H kept heads, K features of a head, F kept FFN units.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlprune_jax.config.geometry import Indices, LayerShape, ModelConfig
from mlprune_jax.models.attention import attend
from pallas_kernels.block_sparse_matmul.epilogue import Activation, activate

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

Hidden = Float[Array, "B L D"]
Asked = Float[Array, "B Q D"]
Probabilities = Float[Array, "B H Q L"]


class Encoded(NamedTuple):
    """What the encoder returns; the tuples are empty unless asked for.

    Attributes:
        last: hidden state after the last layer, [B, L, D]; [B, 1, D] of the first token where no other was asked for.
        pooled: tanh projection of the first token, [B, D]; ``None`` where the model has no pooler.
        hidden_states: the embeddings' output, then each layer's, num_hidden_layers + 1 of [B, L, D].
        attentions: each layer's attention probabilities before dropout, [B, H, L, L].
    """

    last: Hidden
    pooled: Float[Array, "B D"] | None
    hidden_states: tuple[Hidden, ...]
    attentions: tuple[Probabilities, ...]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Float[Array, "*B D_in"], kernel: Float[Array, "D_in D_out"], dtype: Any) -> Float[Array, "*B D_out"]:
    """``x @ kernel`` with ``dtype`` operands and a float32 result, forward and backward.

    Half-precision operands with a float32 result are the fastest form on CPUs with AVX512-BF16 and lose nothing on
    accelerators. Differentiated by JAX, the float32 cotangent would turn both backward products into float32 ones.
    """
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)


def _product_forward(x: Array, kernel: Array, dtype: Any) -> tuple[Array, tuple[Array, ...]]:
    nothing = [jnp.zeros(0, operand.dtype) for operand in (x, kernel)]  # whose dtypes their gradients have
    return product(x, kernel, dtype), (x.astype(dtype), kernel.astype(dtype), *nothing)


def _product_backward(dtype: Any, saved: tuple[Array, ...], upstream: Array) -> tuple[Array, Array]:
    x, kernel, like_x, like_kernel = saved
    # One axis of tokens: summed over two, XLA copies x transposed on a CPU, at 8 % of all gradients' time.
    rows, upstream = x.reshape(-1, x.shape[-1]), upstream.reshape(-1, upstream.shape[-1]).astype(dtype)
    dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    dx = dot(upstream, kernel, (((1,), (1,)), ((), ())))
    dkernel = dot(rows, upstream, (((0,), (0,)), ((), ())))
    return dx.reshape(x.shape).astype(like_x.dtype), dkernel.astype(like_kernel.dtype)


product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """Affine map with float32 master weights; see `product` for its precision."""

    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Float[Array, "*B D_in"]) -> Float[Array, "*B D_out"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y: Array = product(x, jnp.asarray(kernel), self.dtype)  # stored parameters may be numpy's
        return (y + bias).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, computed in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


class Dropout(nn.Module):
    """Inverted dropout whose rate is resolved to 1/256, exactly compensated in the scale.

    Four keep decisions come out of each 32-bit word: drawing the bits is what dropout costs on a CPU, and one word
    per element made it a quarter of a training step.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S"], *, train: bool) -> Float[Array, "*S"]:
        dropped = round(self.rate * 256)
        if not train or dropped == 0:
            return x
        *lead, last = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (*lead, -(-last // 4)), jnp.uint32)
        keep = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*lead, -1)[..., :last] >= dropped
        return jnp.where(keep, x * jnp.asarray(256 / (256 - dropped), x.dtype), jnp.zeros((), x.dtype))


def gelu_kind(hidden_act: str) -> Activation:
    """HF's ``hidden_act``, which names the tanh approximation in several ways."""
    return "gelu" if hidden_act == "gelu" else "gelu_tanh"


def activation(hidden_act: str) -> Any:
    """The FFN activation: erf GELU or its tanh approximation, computed in float32."""
    kind = gelu_kind(hidden_act)
    return lambda x: activate(x.astype(jnp.float32), kind).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_into(
    residual: Float[Array, "*B D"], update: Float[Array, "*B kept"], kept: Indices | None
) -> Float[Array, "*B D"]:
    """Add ``update`` into the ``kept`` features of the residual stream; the other features pass unchanged.

    A gather both ways: as a scatter, forward, it takes 2 to 7 times as long on a CPU (128 to 4096 tokens).
    """
    if kept is None:
        return residual + update
    source = np.full(residual.shape[-1], len(kept))  # features that are not kept read the zero behind the last
    source[list(kept)] = np.arange(len(kept))
    padded = jnp.pad(update, [(0, 0)] * (update.ndim - 1) + [(0, 1)])
    return residual + jnp.take(padded, source, axis=-1, mode="clip")


def _add_forward(residual: Array, update: Array, kept: Indices | None) -> tuple[Array, None]:
    return add_into(residual, update, kept), None


def _add_backward(kept: Indices | None, _: None, upstream: Array) -> tuple[Array, Array]:
    return upstream, upstream if kept is None else jnp.take(upstream, np.asarray(kept), axis=-1, mode="clip")


add_into.defvjp(_add_forward, _add_backward)


class _Part(nn.Module):
    """Fields and short-hands that every part of a layer shares."""

    config: ModelConfig
    shape: LayerShape
    dtype: Any
    dense: Any

    def project(self, features: int, name: str) -> nn.Module:
        init = nn.initializers.normal(self.config.initializer_range)
        return self.dense(features, dtype=self.dtype, kernel_init=init, name=name)

    def close(self, residual: Hidden, update: Array, kept: Indices | None, *, train: bool) -> Hidden:
        """Dropout, residual addition and layer norm: how both halves of a layer end."""
        update = Dropout(self.config.hidden_dropout_prob)(update, train=train)
        return LayerNorm(self.config.layer_norm_eps, name="norm")(add_into(residual, update, kept))


class SelfAttention(_Part):
    """Multi-head self-attention over the kept heads, with its output projection and residual."""

    @nn.compact
    def __call__(
        self, x: Hidden, attention_mask: Array, *, train: bool, asking: int | None, wanted: bool
    ) -> tuple[Asked, Probabilities | None]:
        config, shape = self.config, self.shape
        heads = config.num_attention_heads if shape.heads is None else len(shape.heads)
        asked = x[:, :asking]

        def heads_of(name: str, states: Hidden) -> Array:
            features = self.project(heads * config.head_dim, name)(states)
            return features.reshape(*states.shape[:-1], heads, config.head_dim)

        query, key, value = heads_of("query", asked), heads_of("key", x), heads_of("value", x)
        probabilities = None
        if train or wanted:
            scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32)
            scores = scores * config.head_dim**-0.5
            # A finite floor keeps rows without any real token (batch padding) finite.
            scores = jnp.where(attention_mask[:, None, None, :] != 0, scores, jnp.finfo(jnp.float32).min)
            probabilities = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            weights = Dropout(config.attention_probs_dropout_prob)(probabilities, train=train)
            context = jnp.einsum("bhlm,bmhk->blhk", weights, value)
        else:
            query, key, value = (each.swapaxes(1, 2) for each in (query, key, value))
            context = attend(query, key, value, attention_mask != 0).swapaxes(1, 2).astype(self.dtype)
        context = context.reshape(*asked.shape[:-1], -1)
        features = config.hidden_size if shape.attention_output is None else len(shape.attention_output)
        update = self.project(features, "output")(context)
        return self.close(asked, update, shape.attention_output, train=train), probabilities


class FeedForward(_Part):
    """The two FFN matrices over the kept units, with the residual."""

    @nn.compact
    def __call__(self, x: Hidden, *, train: bool) -> Hidden:
        config, shape = self.config, self.shape
        units = config.intermediate_size if shape.ffn is None else len(shape.ffn)
        features = config.hidden_size if shape.ffn_output is None else len(shape.ffn_output)
        inner = activation(config.hidden_act)(self.project(units, "intermediate")(x))
        return self.close(x, self.project(features, "output")(inner), shape.ffn_output, train=train)


class Layer(_Part):
    """One encoder layer: attention, then feed-forward, post-norm; only the first ``asking`` tokens go on, if given."""

    @nn.compact
    def __call__(
        self, x: Hidden, attention_mask: Array, train: bool, asking: int | None, wanted: bool
    ) -> tuple[Asked, Probabilities | None]:
        parts = (self.config, self.shape, self.dtype, self.dense)
        attention = SelfAttention(*parts, name="attention")
        x, probabilities = attention(x, attention_mask, train=train, asking=asking, wanted=wanted)
        return FeedForward(*parts, name="ffn")(x, train=train), probabilities


class Encoder(nn.Module):
    """The stack of layers, each with its own kept sizes."""

    config: ModelConfig
    dtype: Any
    dense: Any
    rematerialize: bool

    @nn.compact
    def __call__(
        self, x: Hidden, attention_mask: Array, *, train: bool, hidden: bool, attention: bool, first_only: bool
    ) -> Encoded:
        states, maps = [x], []
        # of (self, x, mask, train, asking, wanted)
        layer_class = nn.remat(Layer, static_argnums=(3, 4, 5)) if self.rematerialize else Layer
        for i, shape in enumerate(self.config.layer_shapes):
            layer = layer_class(self.config, shape, self.dtype, self.dense, name=f"layer_{i}")
            is_last = i + 1 == self.config.num_hidden_layers
            x, probabilities = layer(x, attention_mask, train, 1 if first_only and is_last else None, attention)
            states.append(x)
            maps.append(probabilities)
        return Encoded(x, None, tuple(states) if hidden else (), tuple(maps) if attention else ())


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed, normalised and dropped out."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, input_ids: Int[Array, "B L"], token_type_ids: Int[Array, "B L"], *, train: bool) -> Hidden:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)

        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, config.hidden_size, embedding_init=init, name=name)

        x = table(config.vocab_size, "word")(input_ids)
        x = x + table(config.max_position_embeddings, "position")(jnp.arange(input_ids.shape[1]))
        x = x + table(config.type_vocab_size, "token_type")(token_type_ids)
        x = LayerNorm(config.layer_norm_eps, name="norm")(x).astype(self.dtype)
        return Dropout(config.hidden_dropout_prob)(x, train=train)


class Bert(nn.Module):
    """BERT's embeddings, encoder and, with ``pool``, pooler.

    Args:
        config: geometry; ``config.layers`` gives the kept sizes of a shrunk model.
        dtype: compute dtype of products and activations; parameters, normalisation, softmax and sums are float32.
        dense: class of the encoder's linear layers, `Dense` unless a runtime passes its own.
        rematerialize: keep no layer's activations for the backward pass but compute them again: less memory, more time.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    dense: Any = Dense
    pool: bool = True
    rematerialize: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        *,
        train: bool = False,
        hidden: bool = False,
        attention: bool = False,
        first_only: bool = False,
    ) -> Encoded:
        """Encode a batch.

        Args:
            input_ids: token ids below ``vocab_size``, [B, L], L at most ``max_position_embeddings``.
            attention_mask: 1 for real tokens, 0 for padding, [B, L].
            token_type_ids: segment ids, [B, L].
            train: draw dropout from the ``dropout`` rng.
            hidden: also return all hidden states.
            attention: also return all attention probabilities.
            first_only: the last layer answers for the first token alone, all that a pooler reads: BERT-base saves a
                fourteenth of its products. Not with ``hidden`` or ``attention``, which are of all tokens.

        Raises:
            ValueError: where L is above ``max_position_embeddings`` (its embedding would be out of range), or
                ``first_only`` is asked for beside what is of all tokens.
        """
        if first_only and (hidden or attention):
            raise ValueError("first_only leaves nothing of the last layer's other tokens for hidden or attention")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens for {self.config.max_position_embeddings} position embeddings; "
                "lower max_length"
            )
        x = Embeddings(self.config, self.dtype, name="embeddings")(input_ids, token_type_ids, train=train)
        encoder = Encoder(self.config, self.dtype, self.dense, self.rematerialize, name="encoder")
        wanted = {"hidden": hidden, "attention": attention, "first_only": first_only}
        encoded = encoder(x, attention_mask, train=train, **wanted)
        if not self.pool:
            return encoded
        init = nn.initializers.normal(self.config.initializer_range)
        pooler = Dense(self.config.hidden_size, self.dtype, init, name="pooler")
        return encoded._replace(pooled=jnp.tanh(pooler(encoded.last[:, 0])))
