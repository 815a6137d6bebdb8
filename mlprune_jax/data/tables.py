"""Tables of text: tsv, csv and jsonl files with named columns, read without guessing and without repairing."""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from mlprune_jax.errors import DataError

OnDamaged = Literal["error", "skip"]
Record = dict[str, str | None] | str  # one row by column name, or what is wrong with its line
Rows = Iterator[tuple[int, Record]]  # with the 1-based line each row starts on
Stream = Iterable[str]  # lines with their "\n", as an open file or a StringIO gives them

LEAVE_OUT = (
    "repair it, or leave such ones out: on_damaged: skip in a config, --skip-damaged elsewhere; they are counted"
)

NOT_UTF8 = re.compile("[\ud800-\udfff]")  # half a surrogate pair, of JSON's escapes or of bytes that are no text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """The chosen columns of one file, as text.

    Attributes:
        path: the file they come from.
        columns: column name -> one text per row.
        lines: the 1-based line of the file each row starts on, for messages.
        skipped: damaged lines that were left out.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.lines)


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
    on_damaged: OnDamaged = "error",
) -> Table:
    """Read the named columns of a ``.tsv``, ``.csv`` or ``.jsonl`` file.

    tsv is GLUE's: split on TAB, no quoting; csv has real quoting; jsonl is one object a line. Only ``\\n`` (or
    ``\\r\\n``) ends a line, and "NA", "null" and empty cells are text. Blank lines at the end are not rows.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        columns: names that must be there.
        optional: names that are read where the file has them.
        header: column names of a tsv or csv file that has no header line.
        on_damaged: "skip" leaves damaged lines out and logs how many; "error" stops at the first.

    Returns:
        The columns, at least one row long.

    Raises:
        DataError: the file is missing, empty or not UTF-8, lacks a column, or has a damaged line.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown table format {path.suffix!r}", hint=f"use one of {', '.join(READERS)}")
    found, rows = reader(io.StringIO(read_text(path)), path, header)
    names = _choose(path, found, columns, optional)
    table = Table(path, {name: [] for name in names}, [])
    skipped = _fill(table, _same_columns(rows, optional, names), on_damaged)
    if skipped:
        total = len(skipped) + len(table)
        _log.warning("%s: skipped %d damaged lines of %d, first ones: %s", path, len(skipped), total, skipped[:5])
    if not table.lines:
        raise DataError(f"{path}: no rows, {len(skipped)} damaged lines", hint="pass a file with at least one row")
    return replace(table, skipped=len(skipped))


def stream_rows(
    stream: Stream,
    ending: str,
    columns: Sequence[str],
    *,
    source: Path,
    optional: Sequence[str] = (),
    filled: Collection[str] = (),
    header: Sequence[str] | None = None,
    on_damaged: OnDamaged = "error",
) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """The named columns of a table, row by row as the stream delivers them; formats as in `read_table`.

    Args:
        stream: open text, read with ``newline="\\n"``; with ``errors="surrogateescape"``, a line that is not UTF-8 is a
            damaged one.
        ending: ".tsv", ".csv" or ".jsonl".
        columns: names that must be there.
        source: where the stream comes from, for messages.
        optional: names that are read where a row has them.
        filled: those of them all whose cells must hold more than blanks.
        header: column names of a tsv or csv file that has no header line.
        on_damaged: "skip" leaves damaged lines out and logs each; "error" stops there.

    Yields:
        The 1-based line a row starts on, its cells, and what it has of the optional ones; nothing where there are no
        rows.

    Raises:
        DataError: when the stream gets there: no header, a missing column, a damaged line, or text that is not UTF-8.
    """
    if ending not in READERS:
        raise DataError(f"{source}: unknown table format {ending!r}", hint=f"use one of {', '.join(READERS)}")
    found, rows = READERS[ending](stream, source, header)
    names = _choose(source, found, columns, ())
    _choose(source, found, (), optional)
    for line, record in rows:
        further = [name for name in optional if isinstance(record, dict) and name in record]
        cells = _pick(record, [*names, *further], filled)
        if not isinstance(cells, str):
            yield line, cells[: len(names)], dict(zip(further, cells[len(names) :], strict=True))
        elif on_damaged == "skip":
            _log.warning("%s, line %d: %s: left out", source, line, cells)
        else:
            raise DataError(f"{source}, line {line}: {cells}", hint=LEAVE_OUT)


def list_folder(folder: Path) -> list[Path]:
    """What a folder holds, by name.

    Raises:
        DataError: it is no folder, or may not be read.
    """
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be read as a folder: {error}", hint="pass the path of a folder") from None


def name_files(paths: Sequence[Path]) -> str:
    """The names of some files, for messages."""
    return ", ".join(path.name for path in paths[:20]) or "nothing"


def _fill(table: Table, rows: Rows, on_damaged: OnDamaged) -> list[int]:
    """Append the rows to the table's columns; returns the lines that were skipped."""
    skipped: list[int] = []
    for line, record in rows:
        cells = _pick(record, table.columns)
        if not isinstance(cells, str):
            table.lines.append(line)
            for column, cell in zip(table.columns.values(), cells, strict=True):
                column.append(cell)
        elif on_damaged == "skip":
            skipped.append(line)
        else:
            raise DataError(f"{table.path}, line {line}: {cells}", hint=LEAVE_OUT)
    return skipped


def _same_columns(rows: Rows, optional: Sequence[str], chosen: Sequence[str]) -> Rows:
    """The rows, damaged where one has an optional column that the first had not: what it holds would be lost."""
    missing = [name for name in optional if name not in chosen]
    for line, record in rows:
        late = [name for name in missing if isinstance(record, dict) and name in record]
        yield line, f"column {late[0]!r} is here, and not in the first row" if late else record


def _pick(record: Record, names: Iterable[str], filled: Collection[str] = ()) -> list[str] | str:
    """The named cells of a row, or what is wrong with its line."""
    if isinstance(record, str):
        return record
    cells: list[str] = []
    for name in names:
        cell = record.get(name)
        if cell is None:
            return f"column {name!r} is " + ("null or no plain value" if name in record else "absent")
        if NOT_UTF8.search(cell):
            return f"column {name!r} is not UTF-8"
        if name in filled and not cell.strip():
            return f"column {name!r} is blank"
        cells.append(cell)
    return cells


def _choose(path: Path, found: Sequence[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The columns to read, each exactly once in the file."""
    if any(map(NOT_UTF8.search, found)):
        raise DataError(f"{path}: its column names are not UTF-8", hint="save the file as UTF-8")
    for name in columns:
        if found and name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            raise DataError(
                f"{path}: no column {name!r}; columns found: {', '.join(found)[:300]}",
                hint=f"did you mean {near[0]!r}?" if near else "name the columns of this file",
            )
    names = list(dict.fromkeys([*columns, *(name for name in optional if name in found)]))
    for name in names:
        if found.count(name) > 1:
            raise DataError(f"{path}: {found.count(name)} columns are named {name!r}", hint="give each its own name")
    return names


def read_text(path: Path) -> str:
    """A file's text without line ends at its end.

    Raises:
        DataError: it cannot be read, is not UTF-8 or is empty.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="check the path") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason})", hint="save the file as UTF-8") from None
    text = text.rstrip("\r\n")
    if not text:
        raise DataError(f"{path}: the file is empty", hint="pass a file with at least one row")
    return text


def _lines(stream: Stream) -> Iterator[str]:
    """Lines without their ends and without blank ones at the end.

    Only "\\n" ends a line. ``splitlines`` also splits at \\x0b, \\x1c, \\u2028 and others, which are text here.
    """
    blank = 0
    for raw in stream:
        line = raw.removesuffix("\n").removesuffix("\r")
        if not line:
            blank += 1
            continue
        yield from ("",) * blank
        blank = 0
        yield line


def _record(names: Sequence[str], cells: Sequence[str]) -> Record:
    if len(cells) != len(names):
        return f"wanted {len(names)} columns, found {len(cells)}"
    return dict(zip(names, cells, strict=True))


def _read_tsv(stream: Stream, path: Path, header: Sequence[str] | None) -> tuple[Sequence[str], Rows]:
    lines = _lines(stream)
    names = header or _named(_first(lines, path).split("\t"), path)
    first = 1 if header else 2
    return names, ((number, _record(names, line.split("\t"))) for number, line in enumerate(lines, first))


def _read_csv(stream: Stream, path: Path, header: Sequence[str] | None) -> tuple[Sequence[str], Rows]:
    cells = _csv_cells(stream, path)
    names = header or _named(_first(cells, path)[1], path)
    return names, ((number, _record(names, row)) for number, row in cells)


def _csv_cells(stream: Stream, path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)  # of the whole process; the module has no other way, and its 128 KB is a text
    reader = csv.reader(stream, strict=True)
    blank: list[tuple[int, list[str]]] = []  # rows only if another follows
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Never skipped: a stray quote may have swallowed any number of good rows.
            raise DataError(f"{path}, line {line}: {error}", hint="repair the quoting of the row") from None
        if not cells:
            blank.append((line, cells))
            continue
        yield from blank
        blank.clear()
        yield line, cells


def _read_jsonl(stream: Stream, path: Path, header: Sequence[str] | None) -> tuple[Sequence[str], Rows]:
    records = enumerate(map(_object, _lines(stream)), 1)
    damaged, names = [], []
    for number, record in records:
        damaged.append((number, record))
        if isinstance(record, dict):
            names = list(record)
            break
    return names, chain(damaged, records)


def _first(items: Iterator[Any], path: Path) -> Any:
    item = next(items, None)
    if item is None:
        raise DataError(f"{path}: the file is empty", hint="pass a file with at least one row")
    return item


def _named(names: Sequence[str], path: Path) -> Sequence[str]:
    """The column names of a header, if it holds any."""
    if not any(names):
        raise DataError(f"{path}, line 1: blank, wanted column names", hint="begin the file with its column names")
    if any("\r" in name for name in names):
        raise DataError(f"{path}: its lines end with \\r alone", hint="save the file with \\n as line end")
    return names


def _object(line: str) -> Record:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {getattr(error, 'msg', error)}"
    if not isinstance(value, dict):
        return f"wanted a JSON object, found {type(value).__name__}"
    return {name: _plain(cell) for name, cell in value.items()}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _plain(cell: object) -> str | None:
    """A JSON value as text; None where it is null or nested."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool | int | float):
        return json.dumps(cell)
    return None


READERS: dict[str, Callable[[Stream, Path, Sequence[str] | None], tuple[Sequence[str], Rows]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
