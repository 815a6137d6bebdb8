"""A command's result, a dict of plain data, as lines and tables: framed on a terminal, bare columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 10_000  # no line of a file or pipe is wrapped


def print_result(result: Mapping[str, Any]) -> None:
    """Print single values as ``name  value`` lines, then a table for each collection of records.

    Args:
        result: nested dicts of plain data; a list of dicts, or a dict of several dicts, is a collection of records.
    """
    on_terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if on_terminal else PLAIN_WIDTH)
    values = dict(_flatten(result))
    tables = {name: records for name, value in values.items() if (records := _records(value))}
    facts = [{"": name, " ": value} for name, value in values.items() if name not in tables]
    if facts:
        console.print(_table(facts, framed=False))
    for name, records in tables.items():
        console.print(f"\n{name}", markup=False)
        console.print(_table(records, framed=on_terminal))


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and not _records(value):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _records(value: Any) -> list[dict[str, Any]]:
    """Rows of a table, each beginning with its number or name; empty where the value is no collection of records."""
    if isinstance(value, list):
        labelled = list(enumerate(value))
    elif isinstance(value, Mapping) and len(value) > 1:
        labelled = list(value.items())
    else:
        return []
    if not all(isinstance(record, Mapping) for _, record in labelled):
        return []
    return [{"": label, **dict(_flatten(record))} for label, record in labelled]


def _table(records: Sequence[Mapping[str, Any]], *, framed: bool) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record))
    table = Table(
        box=box.SIMPLE_HEAD if framed else None, show_header=any(name.strip() for name in names), pad_edge=False
    )
    for name in names:
        numeric = all(isinstance(record.get(name, 0), int | float) for record in records)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for record in records:
        # Text, not str: a folder named [red] is no markup.
        table.add_row(*(Text(_cell(record.get(name))) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(_cell(item) for item in value)
    return str(value)
