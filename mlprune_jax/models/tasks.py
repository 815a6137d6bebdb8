"""Task heads on BERT: sequence classification, regression and span extraction."""

from __future__ import annotations

from typing import Any, NamedTuple, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.models.bert import Bert, Dense, Dropout, Encoded
from mlprune_jax.models.names import Kind


class Outputs(NamedTuple):
    """A task model's outputs.

    Attributes:
        logits: [B, num_labels]; [B, 1] for regression; [B, L, 2] (start, end) for spans, padding included.
        encoded: the encoder's outputs.
    """

    logits: Array
    encoded: Encoded


def first_token_suffices(kind: Kind, *, all_layers: bool) -> bool:
    """Whether only the first token leaves the last layer: a pooler reads no other, and no layer's states are wanted."""
    return kind != "span" and not all_layers


class TaskModel(nn.Module):
    """BERT with one task head.

    Args:
        config, dtype, dense, rematerialize: see `Bert`.
        kind: "classification" and "regression" read the pooled first token, "span" reads every token.
        num_labels: classes; 1 for regression, 2 (start and end) for spans.
    """

    config: ModelConfig
    kind: Kind
    num_labels: int
    dtype: Any = jnp.float32
    dense: Any = Dense
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
    ) -> Outputs:
        """Encode a batch and read the head; arguments as in `Bert.__call__`; logits are float32.

        ``encoded.last`` is of the first token alone, [B, 1, D], where `first_token_suffices`.

        Raises:
            ConfigError: another ``kind``.
        """
        if self.kind not in get_args(Kind):
            raise ConfigError(f"no kind {self.kind!r} of task: there are {', '.join(get_args(Kind))}")
        init = nn.initializers.normal(self.config.initializer_range)
        pool = self.kind != "span"
        bert = Bert(self.config, self.dtype, self.dense, pool, rematerialize=self.rematerialize, name="bert")
        first_only = first_token_suffices(self.kind, all_layers=hidden or attention)
        wanted = {"hidden": hidden, "attention": attention, "first_only": first_only}
        encoded = bert(input_ids, attention_mask, token_type_ids, train=train, **wanted)
        features = encoded.last
        if encoded.pooled is not None:
            features = Dropout(self.config.hidden_dropout_prob)(encoded.pooled, train=train)
        logits = Dense(self.num_labels, self.dtype, init, name="head")(features)
        return Outputs(logits.astype(jnp.float32), encoded)


def init_params(model: TaskModel, seed: int) -> dict[str, Any]:
    """Fresh float32 parameters of a model, as a plain nested dict."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), tokens, tokens, tokens)["params"]


def run_model(model: TaskModel, params: Any, batch: dict[str, Any], **options: Any) -> Outputs:
    """Apply a model to a batch of `mlprune_jax.data.batches`; ``options`` are those of `TaskModel.__call__`."""
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    return cast(Outputs, model.apply({"params": params}, *inputs, **options))


def predict_logits(model: TaskModel, params: Any, batch: dict[str, Any]) -> Float[Array, "B *out"]:
    """The logits of a batch without dropout: the pure forward that evaluation and serving jit."""
    return run_model(model, params, batch).logits
