"""A table in, predictions as lines of JSON out, row by row, however many there are."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from mlprune_jax.data.named import named_task
from mlprune_jax.data.tables import stream_rows
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.inference.service import LoadedModel, Predictor, Text, load
from pallas_kernels import Implementation


def predict_file(
    model: Path,
    source: Path | TextIO,
    output: Path | TextIO,
    *,
    table_format: str | None = None,
    columns: tuple[str, ...] | None = None,
    skip_damaged: bool = False,
    batch_size: int = 32,
    dtype: str | None = None,
    implementation: Implementation | None = None,
) -> int:
    """Predict for every row of a tsv, csv or jsonl file and write one JSON object a line.

    Args:
        model: a finished run, or a model folder.
        source, output: files, or open streams of text.
        table_format: "tsv", "csv" or "jsonl"; unset: the file's ending, jsonl for a stream.
        columns: of the one text or two; unset: those of the model's task.
        skip_damaged: leave damaged lines out and log each, instead of stopping there.
        batch_size: texts in one step.
        dtype, implementation: see `LoadedModel.compile`.

    Returns:
        How many predictions were written.

    Raises:
        ConfigError: columns that the model cannot take, or none known.
        DataError: a file that is missing or damaged; predictions for the rows before it are written.
        ModelError: no model there.
    """
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"no file {str(source)!r}", hint="pass a tsv, csv or jsonl file, or - for standard input")
    loaded = load(model)
    names = columns or _text_columns(loaded)
    if not 1 <= len(names) <= 2:
        raise ConfigError(f"a text is one column or a pair of two, got {', '.join(names)}")
    name = source if isinstance(source, Path) else Path("standard input")
    ending = f".{table_format}" if table_format else name.suffix.lower() or ".jsonl"
    sizes = sorted({1, min(8, batch_size), batch_size})
    predictor = loaded.compile(batch_sizes=sizes, dtype=dtype, implementation=implementation)
    damaged = "skip" if skip_damaged else "error"
    count = 0
    with _open(source, "r") as incoming, _open(output, "w") as outgoing:
        rows = stream_rows(incoming, ending, names, source=name, on_damaged=damaged)
        for record in predict_rows(predictor, rows):
            outgoing.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _text_columns(model: LoadedModel) -> tuple[str, ...]:
    if model.task is None:
        raise ConfigError(f"{model.folder} names no task, so no columns are known", hint="name them with --columns")
    return model.task.text_columns if model.task.task == "custom" else named_task(model.task.task).text_columns


def _open(file: Path | TextIO, mode: str) -> contextlib.AbstractContextManager[TextIO]:
    if not isinstance(file, Path):
        return contextlib.nullcontext(file)
    try:
        return cast(TextIO, file.open(mode, encoding="utf-8-sig" if mode == "r" else "utf-8", newline="\n"))
    except OSError as error:
        raise DataError(f"{file}: cannot be opened: {error}", hint="check the path") from error


def predict_rows(predictor: Predictor, rows: Iterable[tuple[int, list[str]]]) -> Iterator[dict[str, Any]]:
    """One record per row, in order, as rows arrive; a bounded number of them is held at a time.

    Args:
        predictor: a compiled model.
        rows: the line of each row, and its one text or two.

    Yields:
        ``{"line", "label", "score", "probabilities"}``, the last by class name; for regression ``{"line", "score"}``.
    """
    lines: deque[int] = deque()

    def texts() -> Iterator[Text]:
        for line, cells in rows:
            lines.append(line)
            yield cells[0] if len(cells) == 1 else (cells[0], cells[1])

    for prediction in predictor.stream(texts()):
        record: dict[str, Any] = {"line": lines.popleft(), "score": prediction.score}
        if prediction.label is not None:
            record["label"] = prediction.label
            record["probabilities"] = dict(zip(predictor.labels, prediction.probabilities, strict=True))
        yield record
