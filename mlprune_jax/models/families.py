"""Encoders that compute what BERT computes and say it in other words: how their files are read as a BERT's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.models.names import POOLER, canonical_name


class Family(NamedTuple):
    """What of a family's files differs from BERT's.

    Attributes:
        prefix: of its encoder's tensors, where BERT's have ``bert.``.
        tokenizer: transformers' class, which a folder may leave to be told from its model_type; None: BERT's own.
        defaults: of settings that ``config.json`` leaves out, where they are not BERT's.
        settings: BERT's words in ``config.json`` with this family's, where they differ.
        renamed: parts of names, of tensors of the encoder without the prefix, with BERT's in their place.
        left_out: beginnings of the names of tensors that have no place in a BERT, likewise.
        absent: BERT's names of tensors that the family does without, which is as if they were zeros.
        positions_after_padding: positions count from the padding token's id on, so that the rows up to it mean none.
        embedding_size: of embeddings that may be narrower than the layers, where ``config.json`` does not say; None:
            they cannot.
    """

    prefix: str
    tokenizer: str | None = None
    defaults: Mapping[str, int] = MappingProxyType({})
    settings: Mapping[str, str] = MappingProxyType({})
    renamed: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    positions_after_padding: bool = False
    embedding_size: int | None = None

    def bert_name(self, name: str) -> str | None:
        """BERT's name of a tensor, None where it has no place in one."""
        name = name.removeprefix(f"{self.prefix}.")
        if name.startswith(self.left_out):
            return None
        for own, berts in self.renamed:
            name = name.replace(own, berts)
        return canonical_name(name)

    def first_position(self, config: ModelConfig) -> int:
        """The row of the stored position embeddings that the first token takes."""
        return config.pad_token_id + 1 if self.positions_after_padding else 0


def _roberta(tokenizer: str) -> Family:
    # Its classifier is a dense layer with a tanh on the first token and a projection: BERT's pooler and classifier. The
    # pooler that a pre-trained one brings along is not what that layer starts from in transformers either.
    renamed = (("classifier.dense.", f"{POOLER}."), ("classifier.out_proj.", "classifier."))
    return Family(
        "roberta",
        tokenizer,
        defaults={"pad_token_id": 1},
        renamed=renamed,
        left_out=("lm_head.", "pooler."),
        positions_after_padding=True,
    )


# Between the two layers of their classifiers stands no tanh as in BERT's pooler but, in turn, a ReLU and a GELU.
_DISTILBERT = Family(
    "distilbert",
    defaults={"num_hidden_layers": 6},
    settings={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    renamed=(
        ("transformer.layer.", "encoder.layer."),
        ("attention.q_lin.", "attention.self.query."),
        ("attention.k_lin.", "attention.self.key."),
        ("attention.v_lin.", "attention.self.value."),
        ("attention.out_lin.", "attention.output.dense."),
        ("sa_layer_norm.", "attention.output.LayerNorm."),
        ("ffn.lin1.", "intermediate.dense."),
        ("ffn.lin2.", "output.dense."),
        ("output_layer_norm.", "output.LayerNorm."),
    ),
    left_out=("vocab_", "pre_classifier.", "classifier."),
    absent=("bert.embeddings.token_type_embeddings.weight",),
)
_ELECTRA = Family(
    "electra",
    defaults={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    left_out=(
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
        "sequence_summary.",
        "classifier.",
    ),
    embedding_size=128,
)


FAMILIES = {
    "bert": Family("bert"),
    "roberta": _roberta("RobertaTokenizer"),
    "xlm-roberta": _roberta("XLMRobertaTokenizer"),
    "camembert": _roberta("CamembertTokenizer"),
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
}
"""By the ``model_type`` of a folder's ``config.json``."""
