"""A finished model from its folder: texts in, predictions out."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.answers import Answer, Answers
from mlprune_jax.data.batches import gather
from mlprune_jax.data.encode import Encoded, Tokenizer, check_vocabulary, encode, least_length, load_tokenizer
from mlprune_jax.data.named import named_task
from mlprune_jax.data.squad import SQUAD, Questions
from mlprune_jax.data.tables import NOT_UTF8
from mlprune_jax.data.tasks import Examples, normalized
from mlprune_jax.data.windows import Windows, encode_windows, least_window
from mlprune_jax.errors import ConfigError, DataError, ModelError, NumericalError
from mlprune_jax.files import AnyPath
from mlprune_jax.inference.calls import begun_ahead
from mlprune_jax.inference.runtime import CompiledModel, Served, check_sizes, compile_model, default_dtype
from mlprune_jax.inference.stored import load_masks, model_folder, stored_kind, stored_task
from mlprune_jax.models.names import Kind
from mlprune_jax.models.pretrained import load_pretrained
from pallas_kernels import Implementation
from pallas_kernels.block_sparse_matmul.costs import AnyTable

_log = logging.getLogger(__name__)

Text = str | tuple[str, str]
Row = tuple[str, ...]  # of one text or two
Out = TypeVar("Out")

BATCH_SIZES = (1, 8, 32)
LENGTHS = (32, 64, 128)
UNTOLD = TaskSettings(task="squad")  # how a span model answers whose folder does not say


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
        task: what it was trained for, by its folder or as `load` was told; ``None`` where neither says.
        labels: class names in the order of the head's outputs.
        tokenizer: its tokenizer, which all predictors share.
        tokenizing: entered while it works; a lock where it runs in Python, as its parts may not bear two threads.
    """

    folder: Path
    served: Served
    task: TaskSettings | None
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    tokenizing: AbstractContextManager[Any]

    @property
    def text_columns(self) -> tuple[str, ...] | None:
        """Names of a text's one column or two, by the model's task; ``None`` where its folder names no task."""
        if self.served.kind == "span":
            return SQUAD["squad"].text_columns
        if self.task is None:
            return None
        return self.task.text_columns if self.task.task == "custom" else named_task(self.task.task).text_columns

    def compile(
        self,
        *,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        lengths: Sequence[int] | None = None,
        dtype: str | None = None,
        implementation: Implementation | None = None,
        table: AnyTable | None = None,
    ) -> Predictor[Any]:
        """Compile every pair of batch size and length ahead of time; see `compile_model`.

        Args:
            batch_sizes: rows of a batch.
            lengths: tokens of a row; unset: the buckets that the model was trained with, or of a folder that no run of
                ours wrote 32, 64 and 128 (for spans 128, 256 and 384) as far as the model has positions.
            dtype: "float32", "bfloat16" or "float16"; unset: bfloat16 on a GPU or TPU, float32 on a CPU.
            implementation: of all packed matrices; unset: by measured cost, for each.
            table: measured costs of this device, or their file; unset: its own.

        Raises:
            ConfigError: sizes or a dtype that cannot be, lengths without room for a text, or for a context beside its
                question, an implementation that the device cannot run, or a cost table of another device.
        """
        lengths = check_sizes("lengths", self.usual_lengths() if lengths is None else lengths)
        self._check_room(max(lengths))
        compiled = compile_model(
            self.served,
            batch_sizes=batch_sizes,
            lengths=lengths,
            dtype=dtype or default_dtype(),
            implementation=implementation,
            table=table,
        )
        return (AnswerPredictor if self.served.kind == "span" else ClassPredictor)(compiled, self, max(lengths))

    def usual_lengths(self) -> list[int]:
        """Tokens of a row where nobody says another number: texts are cut at the greatest."""
        positions = self.served.config.max_position_embeddings
        untold = UNTOLD if self.served.kind == "span" else None  # spans are read in windows, not cut
        trained = stored_task(self.folder) or untold
        lengths = sorted({min(length, positions) for length in (trained.buckets if trained else LENGTHS)})
        if trained is None and max(lengths) < positions:
            told = "%s names no lengths: longer texts are cut at %d tokens; `lengths` may go up to %d"
            _log.warning(told, self.folder, max(lengths), positions)
        return lengths

    def _check_room(self, longest: int) -> None:
        """See before minutes of compiling that texts find room, single ones where nothing tells of pairs."""
        if self.served.kind == "span":
            task = self.task or UNTOLD
            sizes = {"doc_stride": task.doc_stride, "max_query_length": task.max_query_length}
            least, what = least_window(self.tokenizer, **sizes), f"a context beside its question, by {sizes}"
        else:
            least, what = least_length(self.tokenizer, len(self.text_columns or ("text",))), "text"
        if longest < least:
            raise ConfigError(
                f"lengths (--seq) of at most {longest} tokens leave no room for {what}",
                hint=f"the longest must be {least} or more; the model has {self.served.config.max_position_embeddings} "
                "positions",
            )


class Predictor(ABC, Generic[Out]):
    """A compiled model with its tokenizer; safe to call from several threads.

    Attributes:
        compiled: the model alone, for callers with token ids.
        labels: class names in the order of the head's outputs.
        truncated: texts so far that were too long and were cut; of questions, those cut themselves.
    """

    def __init__(self, compiled: CompiledModel, model: LoadedModel, max_length: int):
        self.compiled = compiled
        self.labels = model.labels
        self.truncated = 0
        self._columns = model.text_columns
        self._tokenizer = model.tokenizer
        self._tokenizing, self._counting = model.tokenizing, threading.Lock()
        self._segments = model.served.config.type_vocab_size
        self._settings = (model.task or UNTOLD).model_copy(update={"max_length": max_length})

    def __call__(self, texts: Sequence[Text]) -> list[Out]:
        """Predictions for texts or pairs of texts, in their order.

        Raises:
            ConfigError: pairs of a model whose folder does not tell of them, and lengths without room for two texts.
            DataError: something that is no text, single texts and pairs mixed, or what the model does not take.
            NumericalError: logits that are not finite, as weights too large for ``float16`` give.
        """
        return self._predict(list(as_rows(texts)))

    def _predict(self, rows: list[Row]) -> list[Out]:
        if not rows:
            return []
        columns = tuple(map(list, zip(*rows, strict=True)))
        if self._columns and len(columns) != len(self._columns):
            kinds = {1: "single texts", 2: "pairs of texts"}
            raise DataError(
                f"the model takes {kinds[len(self._columns)]} ({', '.join(self._columns)}), got {kinds[len(columns)]}"
            )
        with self._tokenizing:
            encoded = self._encode(columns)
        if encoded.token_type_ids.max(initial=0) >= self._segments:
            raise DataError(
                f"the model takes single texts, as its type_vocab_size is {self._segments}, and its tokenizer marks "
                "those of a pair as first and second",
                hint="pass single texts",
            )
        with self._counting:
            self.truncated += encoded.truncated
        return self._answer(encoded)

    @abstractmethod
    def _encode(self, columns: tuple[list[str], ...]) -> Encoded:
        """Token ids of texts that come as one list, or as two."""

    @abstractmethod
    def _answer(self, encoded: Any) -> list[Out]:
        """Predictions for what `_encode` gave."""

    def stream(self, texts: Iterable[Text], *, chunk: int | None = None) -> Iterator[Out]:
        """Predictions for any number of texts, in their order, ``chunk`` of them in memory at a time.

        Args:
            texts: consumed as predictions are.
            chunk: texts sorted by length together; unset: eight of the largest batches.

        Raises:
            ConfigError: a chunk that is no whole number of at least 1.
            DataError: what is no source of texts; otherwise as `__call__`, where a text is wrong after the answers to
                those before it.
        """
        _check_iterable(texts)
        return self._stream(texts, chunk_size(chunk) or 8 * max(batch for batch, _ in self.compiled.buckets))

    def _stream(self, texts: Iterable[Text], size: int) -> Iterator[Out]:
        waiting = as_rows(texts)
        failure = None
        while failure is None:
            part, failure = _take(waiting, size)
            yield from self._predict(part)  # what came before the failure is answered
            if failure is None and len(part) < size:
                return
        raise failure

    def _run(self, encoded: Encoded) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of the largest batch that is compiled, and their logits, short ones first."""
        largest = max(batch for batch, _ in self.compiled.buckets)
        order = np.argsort(encoded.lengths, kind="stable")
        batches = (order[start : start + largest] for start in range(0, len(order), largest))
        for rows, finish in begun_ahead((rows, self._begin(encoded, rows)) for rows in batches):
            logits = finish()
            if not np.isfinite(logits).all():
                raise NumericalError("the model's logits are not finite", hint="try another dtype: float32, say")
            yield rows, logits

    def _begin(self, encoded: Encoded, rows: np.ndarray) -> Callable[[], np.ndarray]:
        lengths = encoded.lengths[rows]
        batch = gather(encoded, rows, int(lengths.max()))
        return self.compiled.begin(batch["input_ids"], lengths, batch["token_type_ids"])


class ClassPredictor(Predictor[Prediction]):
    """Predicts a class or a number; texts that are too long lose tokens, as in training."""

    def _encode(self, columns: tuple[list[str], ...]) -> Encoded:
        return encode(Examples(columns, None, "texts"), self._tokenizer, max_length=self._settings.max_length)

    def _answer(self, encoded: Encoded) -> list[Prediction]:
        predictions: list[Any] = [None] * len(encoded)
        for rows, logits in self._run(encoded):
            for row, scores in zip(rows, logits, strict=True):
                predictions[row] = self._read(scores)
        return predictions

    def _read(self, logits: np.ndarray) -> Prediction:
        if self.compiled.kind == "regression":
            return Prediction(None, float(logits[0]), ())
        shifted = np.exp(logits - logits.max())
        probabilities = shifted / shifted.sum()
        best = int(probabilities.argmax())
        return Prediction(self.labels[best], float(probabilities[best]), tuple(map(float, probabilities)))


class AnswerPredictor(Predictor[Answer]):
    """Answers questions on their contexts, pairs of both; long contexts are read through several windows."""

    def _encode(self, columns: tuple[list[str], ...]) -> Windows:
        count = len(columns[0])
        asked = Questions(columns, None, "texts", tuple(map(str, range(count))), ((),) * count)
        return encode_windows(asked, self._tokenizer, **self._settings.windowing)

    def _answer(self, encoded: Windows) -> list[Answer]:
        answers = Answers(encoded, **self._settings.answering)
        for rows, logits in self._run(encoded):
            answers.add(rows.tolist(), logits)
        return [answers.answer(question) for question in range(len(encoded.asked))]


def _take(rows: Iterator[Row], size: int) -> tuple[list[Row], Exception | None]:
    """Up to ``size`` texts, and what stopped their source short of that."""
    part: list[Row] = []
    try:
        part.extend(islice(rows, size))
    except Exception as error:
        return part, error
    return part, None


def chunk_size(given: Any) -> int | None:
    """The size of a chunk, whatever a caller passes; raises `ConfigError` where it can be none."""
    if given is not None and not (isinstance(given, int | np.integer) and given >= 1):
        raise ConfigError(f"chunk must be a whole number of at least 1, got {given!r}")
    return None if given is None else int(given)


def _check_iterable(texts: Any) -> None:
    if isinstance(texts, str | Mapping) or not isinstance(texts, Iterable):
        raise DataError(f"texts come as a list; got {texts!r}"[:200], hint="put one text into a list")


def as_rows(texts: Any) -> Iterator[Row]:
    """Texts and pairs as tuples, one by one as they come; whatever a caller passes is checked here.

    Raises:
        DataError: a lone string or no texts at all, cells that are no text, or single texts and pairs mixed.
    """
    _check_iterable(texts)
    size = None
    for number, text in enumerate(texts):
        cells = text if isinstance(text, tuple) else (text,)
        if not 1 <= len(cells) <= 2 or not all(isinstance(cell, str) for cell in cells):
            raise DataError(f"a text is a string or a pair of strings, got {cells!r} at place {number}"[:200])
        if any(map(NOT_UTF8.search, cells)):
            raise DataError(f"the text at place {number} holds half a surrogate pair, which no encoding has: {cells!r}")
        size = size or len(cells)
        if len(cells) != size:
            raise DataError(f"single texts and pairs of texts cannot be mixed in one call, as at place {number}")
        yield cells


def load(path: AnyPath, *, task: str | None = None) -> LoadedModel:
    """A finished run's final model, or any model folder, dense or pruned, ready to be compiled.

    Args:
        path: a run's folder, or a folder with ``config.json``, safetensors weights and a tokenizer.
        task: what the model is for, where its folder does not say: "squad2" where a question may have no answer.

    Raises:
        ConfigError: ``task`` is none that is known, or not the model's.
        DataError, ModelError, IntegrityError: nothing there, not finished, not a model, no trained head, or damaged.

    Example:
        >>> predictor = load("runs/sst2").compile()  # doctest: +SKIP
        >>> predictor(["a gripping film", "two hours of my life"])  # doctest: +SKIP
    """
    folder = model_folder(path)
    kind = stored_kind(folder)
    loaded = load_pretrained(folder, num_labels=None, kind=kind)
    if loaded.fresh_head:
        raise ModelError(f"{folder} has no trained head: there is nothing to predict", hint="fine-tune it first")
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, loaded.config.vocab_size)
    labels = loaded.labels or tuple(f"LABEL_{i}" for i in range(loaded.num_labels))
    served = Served(loaded.config, loaded.params, load_masks(folder), kind)
    settings = stored_task(folder) if task is None else _task_as_given(folder, task, kind, loaded.num_labels)
    tokenizing = nullcontext() if getattr(tokenizer, "is_fast", False) else threading.Lock()
    return LoadedModel(folder, served, settings, labels, tokenizer, tokenizing)


def _task_as_given(folder: Path, name: str, kind: Kind, outputs: int) -> TaskSettings:
    stored = stored_task(folder)
    if stored is not None and normalized(stored.task) == normalized(name):
        return stored
    if stored is not None:
        raise ConfigError(f"{folder} is for task {stored.task}, not {name}", hint="leave the task out")
    wanted = named_task(name, others=())
    if wanted.kind != kind:
        raise ConfigError(f"task {name} is a {wanted.kind}, and {folder} holds a model for {kind}")
    if wanted.num_labels != outputs:
        raise ConfigError(f"task {name} has {wanted.num_labels} classes, and the model in {folder} {outputs} outputs")
    return TaskSettings(task=name)
