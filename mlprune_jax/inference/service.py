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
from mlprune_jax.data.encode import Tokenizer, encode, load_tokenizer
from mlprune_jax.data.tasks import Examples
from mlprune_jax.errors import ConfigError, DataError, ModelError
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
    """

    folder: Path
    served: Served
    task: TaskSettings | None
    labels: tuple[str, ...]
    tokenizer: Tokenizer

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
            lengths: tokens of a row; unset: the buckets that the model was trained with.
            dtype: "float32", "bfloat16" or "float16"; unset: bfloat16 on a GPU or TPU, float32 on a CPU.
            implementation: of all packed matrices; unset: by measured cost, for each.
            table: measured costs; unset: those of this device.

        Raises:
            ConfigError: sizes or a dtype that cannot be, or an implementation that the device cannot run.
        """
        if lengths is None:
            lengths = self.task.buckets if self.task else LENGTHS
        compiled = compile_model(
            self.served,
            batch_sizes=batch_sizes,
            lengths=lengths,
            dtype=dtype or default_dtype(),
            implementation=implementation,
            table=table,
        )
        return Predictor(compiled, self.tokenizer, self.labels, max(lengths))


class Predictor:
    """A compiled model with its tokenizer; safe to call from several threads.

    Attributes:
        compiled: the model alone, for callers with token ids.
        labels: class names in the order of the head's outputs.
    """

    def __init__(self, compiled: CompiledModel, tokenizer: Tokenizer, labels: tuple[str, ...], max_length: int):
        self.compiled = compiled
        self._tokenizer = tokenizer
        self.labels = labels
        self._max_length = max_length
        self._tokenizing = threading.Lock()  # a tokenizer keeps its truncation settings between calls

    def __call__(self, texts: Sequence[Text]) -> list[Prediction]:
        """Predictions for texts, or for pairs of texts, in their order; too long ones lose tokens at the end.

        Raises:
            ConfigError: the model has a span head; `CompiledModel.logits` gives its start and end logits.
            DataError: single texts and pairs mixed.
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
        while part := list(islice(waiting, size)):
            yield from self(part)

    def _encode(self, texts: Sequence[Text]) -> Any:
        pairs = {isinstance(text, tuple) for text in texts}
        if len(pairs) != 1:
            raise DataError("single texts and pairs of texts cannot be mixed in one call")
        columns = tuple(map(list, zip(*texts, strict=True))) if pairs.pop() else (list(texts),)
        with self._tokenizing:
            return encode(Examples(columns, None, "texts"), self._tokenizer, max_length=self._max_length)

    def _logits(self, encoded: Any, rows: np.ndarray) -> np.ndarray:
        lengths = encoded.lengths[rows]
        batch = gather(encoded, rows, int(lengths.max()))
        return self.compiled.logits(batch["input_ids"], lengths, batch["token_type_ids"])

    def _read(self, logits: np.ndarray) -> Prediction:
        if self.compiled.kind == "regression":
            return Prediction(None, float(logits[0]), ())
        shifted = np.exp(logits - logits.max())
        probabilities = shifted / shifted.sum()
        best = int(probabilities.argmax())
        return Prediction(self.labels[best], float(probabilities[best]), tuple(map(float, probabilities)))


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
    labels = loaded.labels or tuple(f"LABEL_{i}" for i in range(loaded.num_labels))
    served = Served(loaded.config, loaded.params, load_masks(folder), kind)
    return LoadedModel(folder, served, stored_task(folder), labels, load_tokenizer(folder))
