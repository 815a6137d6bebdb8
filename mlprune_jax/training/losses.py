"""Task losses and distillation from a teacher (arXiv 2105.14636v1, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.errors import ConfigError
from mlprune_jax.models.tasks import Kind, Outputs

Scalar = Float[Array, ""]
Mask = Int[Array, "B L"]

_PADDING = -1e30  # a logit of no weight at all, still finite over any temperature and in any difference


def task_loss(logits: Array, labels: Array, kind: Kind, attention_mask: Mask | None = None) -> Scalar:
    """Mean cross-entropy of classes or of span ends, mean squared error of regression.

    Args:
        logits: as in `Outputs`.
        labels: class ids [B]; values [B] for regression; start and end positions [B, 2] for spans.
        kind: of the task.
        attention_mask: 1 for real tokens, which alone can be ends of a span; ``None`` where all are real.
    """
    return jnp.mean(example_losses(logits, labels, kind, attention_mask))


def example_losses(logits: Array, labels: Array, kind: Kind, attention_mask: Mask | None = None) -> Float[Array, "B"]:
    """`task_loss` of each example."""
    if kind == "regression":
        return jnp.square(logits[:, 0] - labels)
    if kind == "span":
        return jnp.mean(_cross_entropy(_ends(logits, attention_mask), labels.astype(jnp.int32)), axis=-1)
    return _cross_entropy(logits, labels)


def _ends(logits: Float[Array, "B L 2"], attention_mask: Mask | None) -> Float[Array, "B 2 L"]:
    """Start and end logits as two classifications over the real tokens, so that padding changes no loss."""
    ends = jnp.moveaxis(logits, -1, 1)
    return ends if attention_mask is None else jnp.where(attention_mask[:, None] > 0, ends, _PADDING)


def _cross_entropy(logits: Float[Array, "*B C"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def logit_divergence(
    student: Array, teacher: Array, temperature: float, kind: Kind, attention_mask: Mask | None = None
) -> Scalar:
    """``T^2 KL(teacher || student)`` of the softened classes, batch mean; mean squared error for regression.

    For spans it is the mean of both ends', over the real tokens.
    """
    if kind == "regression":
        return jnp.mean(jnp.square(student - teacher))
    if kind == "span":
        student, teacher = _ends(student, attention_mask), _ends(teacher, attention_mask)
    target = jax.nn.log_softmax(teacher / temperature)
    divergence = jnp.exp(target) * (target - jax.nn.log_softmax(student / temperature))
    return temperature**2 * jnp.mean(jnp.sum(divergence, axis=-1))


def hidden_distance(student: Array, teacher: Array, weights: Float[Array, "B L"]) -> Scalar:
    """Mean squared distance of two hidden states [B, L, D], over the tokens that ``weights`` counts."""
    squares = jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)), axis=-1)
    return jnp.sum(squares * weights) / jnp.sum(weights)


def attention_distance(student: Array, teacher: Array, weights: Float[Array, "B L"]) -> Scalar:
    """Mean squared distance of two attention maps [B, H, L, L], over pairs of tokens that ``weights`` counts."""
    squares = jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)), axis=1)
    pairs = weights[:, :, None] * weights[:, None, :]
    return jnp.sum(squares * pairs) / jnp.sum(pairs)


def distillation_loss(
    student: Outputs,
    teacher: Outputs,
    attention_mask: Int[Array, "B L"],
    settings: Distillation,
    kind: Kind = "classification",
    *,
    same_heads: Sequence[bool] | None = None,
) -> dict[str, Scalar]:
    """The weighted terms that pull a student to its teacher.

    Logits' divergence, plus the sums over layers (the embeddings' output included) of hidden-state distances and of
    attention distances. A layer's attention counts only where both models have the same heads.

    Args:
        student: outputs with hidden states and attentions, as far as their weights are not 0.
        teacher: the same of the teacher.
        attention_mask: 1 for real tokens.
        settings: weights, temperature and how distances are averaged.
        kind: of the task.
        same_heads: of each layer, whether both models have the same heads; unset: where they have as many.

    Returns:
        ``{"logit", "hidden", "attention"}``, each already weighted.

    Raises:
        ConfigError: a term has a weight, and a model's outputs lack what it compares, or differ in its shape.

    Reference: arXiv 2105.14636v1, section 3.
    """
    weights = jnp.ones(attention_mask.shape) if settings.average == "all" else attention_mask.astype(jnp.float32)
    if student.logits.shape != teacher.logits.shape:
        raise ConfigError(f"student and teacher have logits of {student.logits.shape} and {teacher.logits.shape}")
    hidden = _both(student, teacher, "hidden_states", settings.hidden_weight)
    maps = _both(student, teacher, "attentions", settings.attention_weight)
    same = [s.shape == t.shape for s, t in maps] if same_heads is None or not maps else same_heads
    zero = jnp.zeros(())
    logit = logit_divergence(student.logits, teacher.logits, settings.temperature, kind, attention_mask)
    return {
        "logit": settings.logit_weight * logit,
        "hidden": settings.hidden_weight * sum((hidden_distance(s, t, weights) for s, t in hidden), zero),
        "attention": settings.attention_weight
        * sum((attention_distance(*pair, weights) for pair, alike in zip(maps, same, strict=True) if alike), zero),
    }


def _both(student: Outputs, teacher: Outputs, name: str, weight: float) -> list[tuple[Array, Array]]:
    """What each layer has of student and teacher; nothing where it has no weight."""
    if weight == 0:
        return []
    own, other = getattr(student.encoded, name), getattr(teacher.encoded, name)
    if not (own and other):
        raise ConfigError(
            f"distillation weighs {name} by {weight:g}, but the outputs of student or teacher have none",
            hint="run both models with hidden=True and attention=True, or set the weight to 0",
        )
    if len(own) != len(other):
        raise ConfigError(
            f"distillation weighs {name} by {weight:g}: student and teacher have {len(own)} and {len(other)} of them",
            hint="take a teacher of as many layers, or compare logits alone",
        )
    return list(zip(own, other, strict=True))
