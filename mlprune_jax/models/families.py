"""Encoders that compute what BERT computes and say it in other words: how their files are read as a BERT's."""

from __future__ import annotations

from typing import NamedTuple

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.models.names import POOLER, canonical_name


class Family(NamedTuple):
    """What of a family's files differs from BERT's.

    Attributes:
        prefix: of its encoder's tensors, where BERT's have ``bert.``.
        tokenizer: transformers' class, which a folder may leave to be told from its model_type; None: BERT's own.
        renamed: beginnings of names, once the prefix is ``bert.``, with BERT's in their place.
        left_out: beginnings of the names of tensors that have no place in a BERT, likewise.
        padding: id of its padding token, where ``config.json`` does not say.
        positions_after_padding: positions count from the padding token's id on, so that the rows up to it mean none.
    """

    prefix: str
    tokenizer: str | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    padding: int = 0
    positions_after_padding: bool = False

    def bert_name(self, name: str) -> str | None:
        """BERT's name of a tensor, None where it has no place in one."""
        if name.startswith(f"{self.prefix}."):
            name = f"bert.{name.removeprefix(f'{self.prefix}.')}"
        name = canonical_name(name)
        if name.startswith(self.left_out):
            return None
        for own, berts in self.renamed:
            if name.startswith(own):
                return berts + name.removeprefix(own)
        return name

    def first_position(self, config: ModelConfig) -> int:
        """The row of the stored position embeddings that the first token takes."""
        return config.pad_token_id + 1 if self.positions_after_padding else 0


def _roberta(tokenizer: str) -> Family:
    # Its classifier is a dense layer with a tanh on the first token and a projection: BERT's pooler and classifier. The
    # pooler that a pre-trained one brings along is not what that layer starts from in transformers either.
    renamed = (("classifier.dense.", f"{POOLER}."), ("classifier.out_proj.", "classifier."))
    return Family("roberta", tokenizer, renamed, ("lm_head.", "bert.pooler."), padding=1, positions_after_padding=True)


FAMILIES = {
    "bert": Family("bert"),
    "roberta": _roberta("RobertaTokenizer"),
    "xlm-roberta": _roberta("XLMRobertaTokenizer"),
    "camembert": _roberta("CamembertTokenizer"),
}
"""By the ``model_type`` of a folder's ``config.json``."""
