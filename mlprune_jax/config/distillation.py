"""What a student is compared with its teacher in, as written in a config file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mlprune_jax.config.geometry import Frozen, Integer, Real
from mlprune_jax.config.values import Rate


class Distillation(Frozen):
    """Weights of the terms of the loss with a teacher.

    Attributes:
        temperature: what logits are divided by in their KL divergence, whose term carries its square; regression has
            none.
        logit_weight: of the divergence of the logits (regression: of their squared distance).
        hidden_weight: of the mean squared distances of hidden states, summed over the embeddings and all layers.
        attention_weight: of the mean squared distances of attention maps, summed over the layers where student and
            teacher have the same heads, so not over those that lost some.
        task_weight: of the loss on the labels.
        recovery: what recovery compares: "all" of these, or "logits" alone. Those the teacher then answers once for the
            whole training set and its variants, where recovery draws more examples than these are.
        variants: how many copies of each training example, with tokens exchanged or dropped, recovery by logits draws
            from as well, its steps staying as many; labels then count for nothing in it, whatever ``task_weight``.
        average: "tokens" averages hidden states and attention over real tokens; "all" over padding too, as published.
    """

    temperature: Annotated[Real, Field(gt=0)] = 2.0
    logit_weight: Rate = 0.9
    hidden_weight: Rate = 0.9
    attention_weight: Rate = 0.9
    task_weight: Rate = 0.1
    recovery: Literal["all", "logits"] = "all"
    variants: Annotated[Integer, Field(ge=0, le=1000)] = 0
    average: Literal["tokens", "all"] = "tokens"

    @model_validator(mode="after")
    def _recovery_compares(self) -> Distillation:
        if not any((self.logit_weight, self.hidden_weight, self.attention_weight, self.task_weight)):
            raise ValueError("all four weights are 0: nothing would be learned")
        if self.recovery == "logits" and self.logit_weight == 0:
            raise ValueError("recovery logits needs a logit_weight above 0: nothing else would be compared")
        if self.recovery == "all" and self.variants:
            raise ValueError(f"variants {self.variants} needs recovery logits: only a teacher's answers fit them")
        return self

    @property
    def of_recovery(self) -> Distillation:
        """The terms of recovery."""
        dropped = ("hidden_weight", "attention_weight") if self.recovery == "logits" else ()
        unlabelled = ("task_weight",) if self.variants else ()
        return self.model_copy(update=dict.fromkeys(dropped + unlabelled, 0.0))

    @property
    def compares_layers(self) -> bool:
        """Whether it reads more of teacher and student than their logits."""
        return self.hidden_weight > 0 or self.attention_weight > 0
