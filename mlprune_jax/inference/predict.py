"""A table, or questions in SQuAD's layout, in; predictions as lines of JSON out, row by row, however many there are."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from mlprune_jax.data.answers import Answer
from mlprune_jax.data.named import named_task
from mlprune_jax.data.squad import parse_squad
from mlprune_jax.data.tables import NOT_UTF8, OnDamaged, stream_rows
from mlprune_jax.data.tasks import GlueTask
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.files import AnyPath, home_path
from mlprune_jax.inference.service import LoadedModel, Predictor, Text, load
from pallas_kernels import Implementation

_log = logging.getLogger(__name__)

TextStream = Any  # open for text: the classes of io are not instances of what typing calls so


class Row(NamedTuple):
    """What one prediction is for.

    Attributes:
        marks: what tells it apart in the output: its line in a table, its id where it has one, columns that are kept.
        cells: its one text or two.
    """

    marks: dict[str, Any]
    cells: list[str]


def predict_file(
    model: AnyPath,
    source: AnyPath | TextStream,
    output: AnyPath | TextStream,
    *,
    table_format: str | None = None,
    columns: tuple[str, ...] | None = None,
    keep: tuple[str, ...] = (),
    task: str | None = None,
    skip_damaged: bool = False,
    batch_size: int = 32,
    lengths: Sequence[int] | None = None,
    dtype: str | None = None,
    implementation: Implementation | None = None,
) -> int:
    """Predict for every row of a tsv, csv or jsonl file, or for every question of a SQuAD file; one JSON object a line.

    An output file appears when all is done; until then, and if something goes wrong, what was predicted lies in
    ``<output>.partial``. A link is followed, and what is no file, a named pipe say, is written to as it is.

    Args:
        model: a finished run, or a model folder.
        source, output: paths, or open streams of text, that of the source with ``errors="surrogateescape"``; rows of a
            stream are answered in groups of ``batch_size``, rows of a file in groups of eight times as many, sorted by
            length. A SQuAD file is read whole.
        table_format: "tsv", "csv", "jsonl", or "json" for SQuAD's layout; unset: the file's ending, jsonl for a stream.
        columns: of the one text or two; unset: those of the model's task. A span model's table may have an "id" too.
        keep: further columns of a table, which come back with each prediction as the object "kept".
        task: what the model is for, where its folder does not say, see `load`.
        skip_damaged: leave damaged lines out and log each, instead of stopping there.
        batch_size: texts in one step.
        lengths, dtype, implementation: see `LoadedModel.compile`.

    Returns:
        How many predictions were written.

    Raises:
        ConfigError: columns that the model cannot take, none known, columns to keep of a SQuAD file, or one file as
            source and output.
        DataError: a file that is missing or damaged; predictions for the rows before the damage are written.
        ModelError: no model there.
    """
    source, output = _as_path(source), _as_path(output)
    _check_files(source, output)
    loaded = load(model, task=task)
    names = _chosen_columns(loaded, columns)
    place = source if isinstance(source, Path) else Path("standard input")
    ending = f".{table_format}".lower() if table_format else place.suffix.lower() or ".jsonl"
    with _reading(source) as incoming, _writing(output) as outgoing:
        damaged: OnDamaged = "skip" if skip_damaged else "error"
        lines, header = _own_header(incoming, loaded, names) if ending == ".tsv" else (incoming, None)
        span = loaded.served.kind == "span"
        rows = _rows(lines, ending, names, place, damaged, keep=keep, header=header, span=span)
        first = list(islice(rows, 1))  # what is wrong with the table shows before minutes of compiling
        predictor = loaded.compile(
            batch_sizes=[batch_size], lengths=lengths, dtype=dtype, implementation=implementation
        )
        chunk = None if isinstance(source, Path) else batch_size
        count = 0
        for record in predict_rows(predictor, chain(first, rows), chunk=chunk):
            outgoing.write(json.dumps(record, allow_nan=False) + "\n")
            outgoing.flush()
            count += 1
    if predictor.truncated:
        limit = "max_query_length" if loaded.served.kind == "span" else f"{max(predictor.compiled.buckets)[1]} tokens"
        _log.warning("%s: %d of %d are longer than %s and were cut", place, predictor.truncated, count, limit)
    return count


def _as_path(place: AnyPath | TextStream) -> Path | TextStream:
    return home_path(place) if isinstance(place, str | os.PathLike) else place


def _check_files(source: Path | TextStream, output: Path | TextStream) -> None:
    if not isinstance(source, Path):
        return
    if not os.path.exists(source) or source.is_dir():
        raise DataError(f"no file {str(source)!r}", hint="pass a tsv, csv or jsonl file, or - for standard input")
    if not isinstance(output, Path):
        return
    for written in (output, _partial(output)):
        if os.path.exists(written) and written.samefile(source):
            raise ConfigError(f"{written} is the input, and would be overwritten", hint="name another output")


def _chosen_columns(model: LoadedModel, given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The columns of a text: those given, which must be as many as the model's task has, or the task's own."""
    own = model.text_columns
    names = given or own
    if names is None:
        raise ConfigError(f"{model.folder} names no task, so no columns are known", hint="name them with --columns")
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise ConfigError(f"a text is one column or a pair of two different ones, got {', '.join(names)}")
    if own is not None and len(names) != len(own):
        raise ConfigError(f"the model takes {len(own)} columns ({', '.join(own)}), got {', '.join(names)}")
    return names


def _own_header(
    stream: TextStream, model: LoadedModel, names: Sequence[str]
) -> tuple[Iterable[str], tuple[str, ...] | None]:
    """The lines, and the column names of a GLUE task whose train and dev files have no header line, where this is one.

    GLUE's test files, and files of a user's own, do have one. Told apart by the first line: without header it is as
    wide as the task's rows, and no cell of it names a wanted column.
    """
    task = None if model.task is None or model.task.task == "custom" else named_task(model.task.task)
    if not isinstance(task, GlueTask) or task.header is None or not set(names) <= set(task.header):
        return stream, None
    lines = iter(stream)
    first = next(lines, "")
    cells = first.rstrip("\r\n").split("\t")
    headless = len(cells) == len(task.header) and not set(names) & set(cells)
    return chain([first] if first else [], lines), task.header if headless else None


def _rows(
    stream: Any,
    ending: str,
    names: Sequence[str],
    source: Path,
    on_damaged: OnDamaged,
    *,
    keep: Sequence[str],
    header: tuple[str, ...] | None,
    span: bool,
) -> Iterator[Row]:
    """The rows of a table as they come; for a span model also the questions of a SQuAD file."""
    if span and ending == ".json":
        if keep:
            raise ConfigError(f"{source} is no table: it has no columns to keep", hint="answers have their ids")
        text = stream.read()
        if found := NOT_UTF8.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise DataError(f"{source}, line {line}: not UTF-8", hint="save the file as UTF-8")
        asked = parse_squad(text, None, source, on_damaged=on_damaged)
        for name, *texts in zip(asked.ids, *asked.texts, strict=True):
            yield Row({"id": name}, texts)
        return
    marks = ("id",) if span and "id" not in names else ()
    filled = names if span else ()  # as in SQuAD's files: nothing can be answered without a question or a context
    reading = {"source": source, "optional": marks, "filled": filled, "on_damaged": on_damaged, "header": header}
    wanted = list(dict.fromkeys([*names, *keep]))
    for line, cells, found in stream_rows(stream, ending, wanted, **reading):
        kept = {"kept": {name: cells[wanted.index(name)] for name in keep}} if keep else {}
        yield Row({"line": line, **found, **kept}, cells[: len(names)])


@contextlib.contextmanager
def _reading(source: Path | TextStream) -> Iterator[TextStream]:
    if not isinstance(source, Path):
        yield source
        return
    try:
        stream = source.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}", hint="check the path") from error
    with stream:
        yield stream


def _target(output: Path) -> Path:
    """The file itself, where the output is a link to it."""
    return Path(os.path.realpath(output))


def _partial(output: Path) -> Path:
    target = _target(output)
    return target.with_name(f"{target.name}.partial")


@contextlib.contextmanager
def _writing(output: Path | TextStream) -> Iterator[TextStream]:
    """The output, or a file beside it that takes its name when the block ends well."""
    if not isinstance(output, Path):
        yield output
        return
    replaced = output.is_file() or not os.path.exists(output)  # a device or a pipe would be gone
    written = _partial(output) if replaced else output
    try:
        if output.is_dir():
            raise IsADirectoryError("it is a folder")
        stream = written.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error}", hint="check the path") from error
    with stream:
        yield stream
    if replaced:
        written.replace(_target(output))


def predict_rows(
    predictor: Predictor[Any], rows: Iterable[Row], *, chunk: int | None = None
) -> Iterator[dict[str, Any]]:
    """One record per row, in order, as rows arrive; a bounded number of them is held at a time.

    Args:
        predictor: a compiled model.
        rows: as they come.
        chunk: rows that are answered together; see `Predictor.stream`.

    Yields:
        A row's marks with ``{"label", "score", "probabilities"}``, the last by class name; for regression with
        ``{"score"}``; for spans with ``{"answer", "score", "answer_start"}``.
    """
    waiting: deque[dict[str, Any]] = deque()

    def texts() -> Iterator[Text]:
        for marks, cells in rows:
            waiting.append(marks)
            yield cells[0] if len(cells) == 1 else (cells[0], cells[1])

    for prediction in predictor.stream(texts(), chunk=chunk):
        record: dict[str, Any] = {**waiting.popleft(), "score": prediction.score}
        if isinstance(prediction, Answer):
            record |= {"answer": prediction.text, "answer_start": prediction.start}
        elif prediction.label is not None:
            record["label"] = prediction.label
            record["probabilities"] = dict(zip(predictor.labels, prediction.probabilities, strict=True))
        yield record
