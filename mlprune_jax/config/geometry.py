"""The geometry of a BERT encoder, per layer: what the model is built from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mlprune_jax.config.descriptions import describe

Indices = tuple[Annotated[int, Field(ge=0)], ...]


def refuse_bool(value: object) -> object:
    """Reject ``true``/``false`` where a number is meant: pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got the boolean {value}")
    return value


Integer = Annotated[int, BeforeValidator(refuse_bool)]
Real = Annotated[float, BeforeValidator(refuse_bool)]
DropoutRate = Annotated[Real, Field(ge=0, le=0.99)]  # in steps of 1/256, so that more could round to 1


class Frozen(BaseModel):
    """Immutable settings: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=describe)


class LayerShape(Frozen):
    """What one encoder layer keeps, as ascending ids in the dense layer; ``None`` keeps everything.

    Attributes:
        heads: kept attention heads.
        attention_output: kept output features of the attention output matrix; the layer adds into these
            features of the residual stream only.
        ffn: kept FFN units (output features of the first FFN matrix).
        ffn_output: kept output features of the second FFN matrix.
    """

    heads: Indices | None = None
    attention_output: Indices | None = None
    ffn: Indices | None = None
    ffn_output: Indices | None = None


class ModelConfig(Frozen):
    """Geometry and constants of a BERT model; field names are those of Hugging Face's ``config.json``.

    Attributes:
        vocab_size: rows of the word embeddings; in a run, those of the tokenizer.
        hidden_size: features of a token between layers, a multiple of ``num_attention_heads``.
        num_hidden_layers: encoder layers.
        num_attention_heads: heads of each layer.
        intermediate_size: FFN units of each layer.
        max_position_embeddings: positions, the longest input in tokens.
        type_vocab_size: token types; pairs of texts need two where the tokenizer marks them.
        pad_token_id: id of the padding token, kept for other software: batches are padded with the tokenizer's.
        layer_norm_eps: epsilon of the layer norms.
        hidden_act: activation of the FFN: "gelu", by erf; "gelu_new" or "gelu_pytorch_tanh", by tanh.
        hidden_dropout_prob: rate of dropout of hidden states.
        attention_probs_dropout_prob: rate of dropout of attention probabilities.
        initializer_range: standard deviation of fresh weights.
        layers: empty for a dense model; one `LayerShape` per layer for a shrunk one.

    Raises:
        pydantic.ValidationError: where the parts do not fit together.
    """

    vocab_size: Annotated[Integer, Field(ge=1)] = 30522
    hidden_size: Annotated[Integer, Field(ge=1)] = 768
    num_hidden_layers: Annotated[Integer, Field(ge=1)] = 12
    num_attention_heads: Annotated[Integer, Field(ge=1)] = 12
    intermediate_size: Annotated[Integer, Field(ge=1)] = 3072
    max_position_embeddings: Annotated[Integer, Field(ge=1)] = 512
    type_vocab_size: Annotated[Integer, Field(ge=1)] = 2
    pad_token_id: Annotated[Integer, Field(ge=0)] = 0
    layer_norm_eps: Annotated[Real, Field(gt=0)] = 1e-12
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh"] = "gelu"
    hidden_dropout_prob: DropoutRate = 0.1
    attention_probs_dropout_prob: DropoutRate = 0.1
    initializer_range: Annotated[Real, Field(gt=0)] = 0.02
    layers: tuple[LayerShape, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.layers and len(self.layers) != self.num_hidden_layers:
            raise ValueError(f"{len(self.layers)} layer shapes for num_hidden_layers {self.num_hidden_layers}")
        limits = dict(
            heads=self.num_attention_heads,
            attention_output=self.hidden_size,
            ffn=self.intermediate_size,
            ffn_output=self.hidden_size,
        )
        for i, layer in enumerate(self.layers):
            for name, limit in limits.items():
                kept = getattr(layer, name)
                if kept is not None and (list(kept) != sorted(set(kept)) or not kept or kept[-1] >= limit):
                    raise ValueError(f"layer {i}: {name} must be ascending ids below {limit}, at least one, got {kept}")
        return self

    @property
    def head_dim(self) -> int:
        """Features of one attention head; pruning heads does not change it."""
        return self.hidden_size // self.num_attention_heads

    def with_dropout(self, rate: float | None) -> ModelConfig:
        """The same geometry with one rate for both kinds of dropout; as it is without one."""
        if rate is None:
            return self
        return self.model_copy(update={"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate})

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """One `LayerShape` per layer, the dense ones made explicit."""
        return self.layers or (LayerShape(),) * self.num_hidden_layers
