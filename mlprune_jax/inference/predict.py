"""A table in, predictions as lines of JSON out, row by row, however many there are."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mlprune_jax.data.named import named_task
from mlprune_jax.data.tables import stream_rows
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.inference.service import LoadedModel, Predictor, Text, load
from pallas_kernels import Implementation

TextStream = Any  # open for text: the classes of io are not instances of what typing calls so


def predict_file(
    model: Path,
    source: Path | TextStream,
    output: Path | TextStream,
    *,
    table_format: str | None = None,
    columns: tuple[str, ...] | None = None,
    skip_damaged: bool = False,
    batch_size: int = 32,
    lengths: Sequence[int] | None = None,
    dtype: str | None = None,
    implementation: Implementation | None = None,
) -> int:
    """Predict for every row of a tsv, csv or jsonl file and write one JSON object a line.

    An output file appears when all is done; until then, and if something goes wrong, what was predicted lies in
    ``<output>.partial``.

    Args:
        model: a finished run, or a model folder.
        source, output: files, or open streams of text; rows of a stream are answered in groups of ``batch_size``, rows
            of a file in groups of eight times as many, sorted by length.
        table_format: "tsv", "csv" or "jsonl"; unset: the file's ending, jsonl for a stream.
        columns: of the one text or two; unset: those of the model's task.
        skip_damaged: leave damaged lines out and log each, instead of stopping there.
        batch_size: texts in one step.
        lengths, dtype, implementation: see `LoadedModel.compile`.

    Returns:
        How many predictions were written.

    Raises:
        ConfigError: columns that the model cannot take, none known, or one file as source and output.
        DataError: a file that is missing or damaged; predictions for the rows before the damage are written.
        ModelError: no model there.
    """
    _check_files(source, output)
    loaded = load(model)
    names = columns or _text_columns(loaded)
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise ConfigError(f"a text is one column or a pair of two different ones, got {', '.join(names)}")
    place = source if isinstance(source, Path) else Path("standard input")
    ending = f".{table_format}" if table_format else place.suffix.lower() or ".jsonl"
    with _reading(source) as incoming, _writing(output) as outgoing:
        rows = stream_rows(incoming, ending, names, source=place, on_damaged="skip" if skip_damaged else "error")
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
    return count


def _check_files(source: Path | TextStream, output: Path | TextStream) -> None:
    if not isinstance(source, Path):
        return
    if not os.path.exists(source) or source.is_dir():
        raise DataError(f"no file {str(source)!r}", hint="pass a tsv, csv or jsonl file, or - for standard input")
    if isinstance(output, Path) and os.path.exists(output) and output.samefile(source):
        raise ConfigError(f"{output} is the input, and would be overwritten", hint="name another output")


def _text_columns(model: LoadedModel) -> tuple[str, ...]:
    if model.task is None:
        raise ConfigError(f"{model.folder} names no task, so no columns are known", hint="name them with --columns")
    return model.task.text_columns if model.task.task == "custom" else named_task(model.task.task).text_columns


@contextlib.contextmanager
def _reading(source: Path | TextStream) -> Iterator[TextStream]:
    if not isinstance(source, Path):
        yield source
        return
    try:
        stream = source.open(encoding="utf-8-sig", newline="\n")
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}", hint="check the path") from error
    with stream:
        yield stream


@contextlib.contextmanager
def _writing(output: Path | TextStream) -> Iterator[TextStream]:
    """The output, or a file beside it that takes its name when the block ends well."""
    if not isinstance(output, Path):
        yield output
        return
    partial = output.with_name(f"{output.name}.partial")
    try:
        if output.is_dir():
            raise IsADirectoryError("it is a folder")
        stream = partial.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error}", hint="check the path") from error
    with stream:
        yield stream
    partial.replace(output)


def predict_rows(
    predictor: Predictor, rows: Iterable[tuple[int, list[str]]], *, chunk: int | None = None
) -> Iterator[dict[str, Any]]:
    """One record per row, in order, as rows arrive; a bounded number of them is held at a time.

    Args:
        predictor: a compiled model.
        rows: the line of each row, and its one text or two.
        chunk: rows that are answered together; see `Predictor.stream`.

    Yields:
        ``{"line", "label", "score", "probabilities"}``, the last by class name; for regression ``{"line", "score"}``.
    """
    lines: deque[int] = deque()

    def texts() -> Iterator[Text]:
        for line, cells in rows:
            lines.append(line)
            yield cells[0] if len(cells) == 1 else (cells[0], cells[1])

    for prediction in predictor.stream(texts(), chunk=chunk):
        record: dict[str, Any] = {"line": lines.popleft(), "score": prediction.score}
        if prediction.label is not None:
            record["label"] = prediction.label
            record["probabilities"] = dict(zip(predictor.labels, prediction.probabilities, strict=True))
        yield record
