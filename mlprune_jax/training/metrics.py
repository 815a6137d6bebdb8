"""Evaluation: a model's logits over a split, and the task's metrics from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from mlprune_jax.data.batches import process_share
from mlprune_jax.errors import NumericalError
from mlprune_jax.models.tasks import Kind, TaskModel, predict_logits
from mlprune_jax.training.comparison import Outcomes, Rows
from mlprune_jax.training.losses import example_losses
from mlprune_jax.training.mesh import Layout


def make_forward(model: TaskModel, layout: Layout) -> Any:
    """``(params, batch) -> (logits, loss of each example)``, without dropout.

    Parameters and batches are whole on every process; each computes its share, and gets all results.
    """

    def run(params: Any, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        share = process_share(len(batch["labels"]))
        return _forward(model, layout, params, layout.batch({name: rows[share] for name, rows in batch.items()}))

    return run


@partial(jax.jit, static_argnums=(0, 1))  # compiled once for all evaluations of a geometry
def _forward(model: TaskModel, layout: Layout, params: Any, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    logits = predict_logits(model, params, batch)
    losses = example_losses(logits, batch["labels"], model.kind, batch["attention_mask"])
    return jax.lax.with_sharding_constraint((logits, losses), layout.everywhere)


def forward_batches(
    forward: Any, params: Any, batches: Iterable[dict[str, Any]]
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """The examples of each batch, without the rows that fill it up, their logits and their losses.

    Args:
        forward: see `make_forward`.
        params: the model's parameters.
        batches: from `mlprune_jax.data.batches.eval_batches`; rows of weight 0 are padding.

    Raises:
        NumericalError: logits that are not finite: they answer nothing, and a score would not say so.
    """
    for batch in batches:
        real = batch["weights"] > 0
        logits, losses = forward(params, {k: v for k, v in batch.items() if k not in ("weights", "index")})
        logits = np.asarray(logits)[real]
        if not np.isfinite(logits).all():
            raise NumericalError("the model's logits are not finite", hint="train it again with a lower learning_rate")
        yield {name: rows[real] for name, rows in batch.items()}, logits, np.asarray(losses)[real]


def evaluate(
    forward: Any, params: Any, batches: Iterable[dict[str, Any]], metrics: tuple[str, ...], kind: Kind
) -> Outcomes:
    """What a model says of each example of a split, with metrics and mean loss.

    Args:
        forward: see `make_forward`.
        params: the model's parameters.
        batches: from `mlprune_jax.data.batches.eval_batches`.
        metrics: names out of `METRICS`.
        kind: of the task.

    Returns:
        Outcomes in the examples' order, whose metrics are ``{metric: value, ..., "loss": value, "examples": count}``;
        accuracies and correlations lie in [-1, 1].

    Raises:
        NumericalError: logits that are not finite.
    """
    found = [
        (batch["index"], batch["labels"], logits, losses)
        for batch, logits, losses in forward_batches(forward, params, batches)
    ]
    index, *columns = map(np.concatenate, zip(*found, strict=True))
    gold, scores, losses = (column[np.argsort(index)] for column in columns)  # batches begin with short examples
    predicted = scores[:, 0] if kind == "regression" else scores.argmax(-1)

    def score(rows: Rows) -> dict[str, float]:
        values = {name: float(METRICS[name](gold[rows], predicted[rows])) for name in metrics}
        return values | {"loss": float(losses[rows].mean())}

    correct = None if kind == "regression" else gold == predicted
    return Outcomes(predicted, correct, score, {"examples": len(gold)})


def _accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(gold == predicted))


def _f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, zero_division=0))  # type: ignore[arg-type]  # its stub knows strings alone


def _mcc(gold: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(gold, predicted)


def _correlation(name: str, gold: np.ndarray, predicted: np.ndarray) -> float:
    from scipy import stats

    # A constant prediction has no correlation; scipy would return NaN with a warning.
    if np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0
    return float(getattr(stats, name)(gold, predicted).statistic)


METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "mcc": _mcc,
    "pearson": lambda gold, predicted: _correlation("pearsonr", gold, predicted),
    "spearman": lambda gold, predicted: _correlation("spearmanr", gold, predicted),
}
