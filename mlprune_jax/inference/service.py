"""A finished model from its folder: texts in, predictions out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlprune_jax.config.settings import TaskSettings
from mlprune_jax.data.batches import gather
from mlprune_jax.data.encode import Encoded, Tokenizer, check_vocabulary, encode, load_tokenizer
from mlprune_jax.data.tasks import Examples
from mlprune_jax.errors import ConfigError, DataError, ModelError, NumericalError
from mlprune_jax.inference.runtime import CompiledModel, Served, compile_model, default_dtype
from mlprune_jax.inference.stored import load_masks, model_folder, stored_kind, stored_task
from mlprune_jax.models.pretrained import load_pretrained
from pallas_kernels import Implementation
from pallas_kernels.block_sparse_matmul.costs import CostTable

Text = str | tuple[str, str]

BATCH_SIZES = (1, 8, 32)
LENGTHS = (32, 64, 128)


class Prediction(NamedTuple):
    """The answer for one text.

    Attributes:
        label: class name; ``None`` for regression.
        score: probability of the class, or the predicted number.
        probabilities: of every class, in the order of the labels; empty for regression.
    """

    label: str | None
    score: float
    probabilities: tuple[float, ...]


class LoadedModel(NamedTuple):
    """A finished model, dense or pruned, in memory; `compile` makes it answer.

    Attributes:
        folder: where it came from.
        served: geometry, parameters and masks.
        task: what it was trained for; ``None`` for a folder that no run of ours wrote.
        labels: class names in the order of the head's outputs.
        tokenizer: its tokenizer.
        tokenizing: held while the tokenizer works, which keeps its truncation between calls; all predictors share it.
    """

    folder: Path
    served: Served
    task: TaskSettings | None
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    tokenizing: threading.Lock

    def compile(
        self,
        *,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        lengths: Sequence[int] | None = None,
        dtype: str | None = None,
        implementation: Implementation | None = None,
        table: CostTable | None = None,
    ) -> Predictor:
        """Compile every pair of batch size and length ahead of time; see `compile_model`.

        Args:
            batch_sizes: rows of a batch.
            lengths: tokens of a row; unset: the buckets that the model was trained with, or 32, 64 and 128 as far as
                the model has positions.
            dtype: "float32", "bfloat16" or "float16"; unset: bfloat16 on a GPU or TPU, float32 on a CPU.
            implementation: of all packed matrices; unset: by measured cost, for each.
            table: measured costs; unset: those of this device.

        Raises:
            ConfigError: sizes or a dtype that cannot be, or an implementation that the device cannot run.
        """
        if lengths is None:
            positions = self.served.config.max_position_embeddings
            lengths = self.task.buckets if self.task else sorted({min(length, positions) for length in LENGTHS})
        compiled = compile_model(
            self.served,
            batch_sizes=batch_sizes,
            lengths=lengths,
            dtype=dtype or default_dtype(),
            implementation=implementation,
            table=table,
        )
        return Predictor(compiled, self, max(lengths))


class Predictor:
    """A compiled model with its tokenizer; safe to call from several threads.

    Attributes:
        compiled: the model alone, for callers with token ids.
        labels: class names in the order of the head's outputs.
    """

    def __init__(self, compiled: CompiledModel, model: LoadedModel, max_length: int):
        self.compiled = compiled
        self.labels = model.labels
        self._tokenizer = model.tokenizer
        self._tokenizing = model.tokenizing
        self._max_length = max_length

    def __call__(self, texts: Sequence[Text]) -> list[Prediction]:
        """Predictions for texts, or for pairs of texts, in their order; too long ones lose tokens at the end.

        Raises:
            ConfigError: the model has a span head; `CompiledModel.logits` gives its start and end logits.
            DataError: something that is no text, or single texts and pairs mixed.
            NumericalError: logits that are not finite, as weights too large for ``float16`` give.
        """
        if self.compiled.kind == "span":
            raise ConfigError("a span model's answers are start and end logits", hint="use .compiled.logits(...)")
        if not texts:
            return []
        encoded = self._encode(texts)
        predictions: list[Any] = [None] * len(texts)
        largest = max(batch for batch, _ in self.compiled.buckets)
        order = np.argsort(encoded.lengths, kind="stable")
        for start in range(0, len(order), largest):
            rows = order[start : start + largest]
            for row, logits in zip(rows, self._logits(encoded, rows), strict=True):
                predictions[row] = self._read(logits)
        return predictions

    def stream(self, texts: Iterable[Text], *, chunk: int | None = None) -> Iterator[Prediction]:
        """Predictions for any number of texts, in their order, ``chunk`` of them in memory at a time.

        Args:
            texts: consumed as predictions are.
            chunk: texts sorted by length together; unset: eight of the largest batches.
        """
        size = chunk or 8 * max(batch for batch, _ in self.compiled.buckets)
        waiting = iter(texts)
        failure = None
        while failure is None:
            part, failure = _take(waiting, size)
            yield from self(part)  # what came before the failure is answered
            if failure is None and len(part) < size:
                return
        raise failure

    def _encode(self, texts: Sequence[Text]) -> Encoded:
        columns = to_columns(texts)
        with self._tokenizing:
            return encode(Examples(columns, None, "texts"), self._tokenizer, max_length=self._max_length)

    def _logits(self, encoded: Encoded, rows: np.ndarray) -> np.ndarray:
        lengths = encoded.lengths[rows]
        batch = gather(encoded, rows, int(lengths.max()))
        logits = self.compiled.logits(batch["input_ids"], lengths, batch["token_type_ids"])
        if not np.isfinite(logits).all():
            raise NumericalError("the model's logits are not finite", hint="try another dtype: float32, say")
        return logits

    def _read(self, logits: np.ndarray) -> Prediction:
        if self.compiled.kind == "regression":
            return Prediction(None, float(logits[0]), ())
        shifted = np.exp(logits - logits.max())
        probabilities = shifted / shifted.sum()
        best = int(probabilities.argmax())
        return Prediction(self.labels[best], float(probabilities[best]), tuple(map(float, probabilities)))


def _take(texts: Iterator[Text], size: int) -> tuple[list[Text], Exception | None]:
    """Up to ``size`` texts, and what stopped their source short of that."""
    part: list[Text] = []
    try:
        part.extend(islice(texts, size))
    except Exception as error:
        return part, error
    return part, None


def to_columns(texts: Any) -> tuple[list[str], ...]:
    """Texts as one list, or pairs as two; whatever a caller passes as texts is checked here.

    Raises:
        DataError: a lone string, cells that are no text, or single texts and pairs mixed.
    """
    if isinstance(texts, str):
        raise DataError("texts come as a list; got one string", hint="put it into a list")
    for text in texts:
        cells = text if isinstance(text, tuple) else (text,)
        if not 1 <= len(cells) <= 2 or not all(isinstance(cell, str) for cell in cells):
            raise DataError(f"a text is a string or a pair of strings, got {text!r}"[:200])
    sizes = {len(text) if isinstance(text, tuple) else 1 for text in texts}
    if len(sizes) > 1:
        raise DataError("single texts and pairs of texts cannot be mixed in one call")
    rows = [text if isinstance(text, tuple) else (text,) for text in texts]
    return tuple([row[i] for row in rows] for i in range(sizes.pop()))


def load(path: str | Path) -> LoadedModel:
    """A finished run's final model, or any model folder, dense or pruned, ready to be compiled.

    Args:
        path: a run's folder, or a folder with ``config.json``, safetensors weights and a tokenizer.

    Raises:
        DataError, ModelError, IntegrityError: nothing there, not finished, not a model, no trained head, or damaged.

    Example:
        >>> predictor = load("runs/sst2").compile()  # doctest: +SKIP
        >>> predictor(["a gripping film", "two hours of my life"])  # doctest: +SKIP
    """
    folder = model_folder(Path(path))
    kind = stored_kind(folder)
    loaded = load_pretrained(folder, num_labels=None, kind=kind)
    if loaded.fresh_head:
        raise ModelError(f"{folder} has no trained head: there is nothing to predict", hint="fine-tune it first")
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, loaded.config.vocab_size)
    labels = loaded.labels or tuple(f"LABEL_{i}" for i in range(loaded.num_labels))
    served = Served(loaded.config, loaded.params, load_masks(folder), kind)
    return LoadedModel(folder, served, stored_task(folder), labels, tokenizer, threading.Lock())
