"""Measured times of the implementations: one table per kind of device, as JSON, checked when it is read.

A table of the user's own device (`calibrate`) lies in the cache folder and goes before the one that came with the
package, kind of product by kind of product. Dense and sparse times of an entry are of one run; those of different
entries need not be.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.implementations import IMPLEMENTATIONS
from pallas_kernels.device import any_generation
from pallas_kernels.errors import KernelError

FORMAT = 1
UNSAID = {"at_once": 1, "activation": None}
"""What tables from before they were told apart do not say of an entry."""
PACKAGED = Path(__file__).parent / "costs"


@dataclass(frozen=True)
class Entry:
    """What one product took.

    Attributes:
        dtype: of operands and result.
        shape: ``(d_in, d_out)``.
        block_shape: ``(block_in, block_out)``.
        density: stored blocks over all blocks.
        tokens: rows of the left operand, of one call.
        activation: what followed the product in the same function; ``None``: nothing, or a bias.
        at_once: calls that ran side by side, one on each core of a CPU; 1 is a call alone, with all cores to itself.
        seconds: implementation -> median seconds; "dense" (the platform's own product, spread once) is always there.
    """

    dtype: str
    shape: tuple[int, int]
    block_shape: tuple[int, int]
    density: float
    tokens: int
    seconds: dict[str, float]
    at_once: int = 1
    activation: Activation | None = None


@dataclass(frozen=True)
class CostTable:
    """Entries measured on one kind of device.

    Attributes:
        hardware: `pallas_kernels.device.hardware_name` of the device.
        measured: date, jax version, command, commit and whatever else says how.
        entries: in the order of their measurement.
    """

    hardware: str
    measured: dict[str, Any]
    entries: tuple[Entry, ...]


AnyTable = CostTable | str | os.PathLike[str]
"""A table, or where it lies."""


def user_table_path(hardware: str) -> Path:
    """Where the user's own table for a device lies: ``$XDG_CACHE_HOME/mlprune/costs/<device>.json``."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "mlprune" / "costs" / file_name(hardware)


def file_name(hardware: str) -> str:
    """A device's name as the name of its table."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-") + ".json"


def find_table(hardware: str) -> CostTable | None:
    """What is known of a device: the user's table, and the package's for whatever kind of product that one lacks.

    Where there is none of a CPU's generation, a table from before generations were told apart stands in for it. A kind
    is a dtype, a matrix and block shape, what followed, and how many calls ran at once: a calibration that was cut
    short, or is from before calls ran side by side, hides nothing of the others.

    Raises:
        KernelError: a table is damaged.
    """
    found = [_users_table(hardware), _table_in(PACKAGED, hardware)]
    tables = [replace(table, hardware=hardware) for table in found if table is not None]
    if len(tables) < 2:
        return tables[0] if tables else None
    return complete(*tables)


def given_table(table: AnyTable, hardware: str) -> CostTable:
    """A table that a caller passes, read where it is a path.

    Raises:
        KernelError: it is of another device, or cannot be read.
    """
    if not isinstance(table, CostTable):
        path = Path(os.path.expanduser(table))
        table = _cached(path, path.stat().st_mtime_ns) if path.is_file() else load_table(path)
    if table.hardware not in (hardware, any_generation(hardware)):
        raise KernelError(f"the cost table is of {table.hardware!r}, and this device is {hardware!r}")
    return table


def complete(own: CostTable, other: CostTable) -> CostTable:
    """A table, and another's entries for whatever kind of product it lacks."""
    kinds = {_kind(entry) for entry in own.entries}
    return replace(own, entries=own.entries + tuple(entry for entry in other.entries if _kind(entry) not in kinds))


def _users_table(hardware: str) -> CostTable | None:
    try:
        return _table_in(user_table_path(hardware).parent, hardware)
    except (OSError, RuntimeError):  # no home, or one that this process may not look into
        return None


def _table_in(folder: Path, hardware: str) -> CostTable | None:
    paths = (folder / file_name(name) for name in (hardware, any_generation(hardware)))
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else _cached(path, path.stat().st_mtime_ns)


def _kind(entry: Entry) -> tuple[Any, ...]:
    return entry.dtype, entry.shape, entry.block_shape, entry.at_once, entry.activation


def load_table(path: Path | str) -> CostTable:
    """Read and check a table.

    Raises:
        KernelError: no such file, or what is wrong in it and where.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KernelError(f"cost table {path} cannot be read: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise KernelError(f"cost table {path}: format must be {FORMAT}; measure it again with this version")
    for name, kind in (("hardware", str), ("measured", dict), ("entries", list)):
        if not isinstance(raw.get(name), kind):
            raise KernelError(f"cost table {path}: {name} must be a {kind.__name__}, got {raw.get(name)!r}")
    entries = tuple(_entry(entry, f"cost table {path}: entries[{i}]") for i, entry in enumerate(raw["entries"]))
    return CostTable(raw["hardware"], raw["measured"], entries)


def save_table(table: CostTable, path: Path | str) -> None:
    """Write a table in one step: a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(asdict(entry)) for entry in table.entries)  # one line each: reviewable
    head = json.dumps({"format": FORMAT, "hardware": table.hardware, "measured": table.measured}, indent=1)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(f'{head[:-2]},\n "entries": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    os.replace(unfinished, path)


@cache
def _cached(path: Path, modified: int) -> CostTable:
    return load_table(path)


def _entry(raw: Any, where: str) -> Entry:
    if not isinstance(raw, dict) or {*raw, *UNSAID} != set(Entry.__dataclass_fields__):
        raise KernelError(f"{where} must have {', '.join(Entry.__dataclass_fields__)}; got {raw!r}")
    raw = UNSAID | raw
    checks = {
        "dtype": isinstance(raw["dtype"], str),
        "shape": _are_sizes(raw["shape"], 2),
        "block_shape": _are_sizes(raw["block_shape"], 2),
        "density": _is_positive(raw["density"]) and raw["density"] <= 1,
        "tokens": _are_sizes([raw["tokens"]], 1),
        "seconds": _are_seconds(raw["seconds"]),
        "at_once": _are_sizes([raw["at_once"]], 1),
        "activation": raw["activation"] in (None, *get_args(Activation)),
    }
    for name, good in checks.items():
        if not good:
            raise KernelError(f"{where}.{name} is not usable: {raw[name]!r}")
    (d_in, d_out), (block_in, block_out) = raw["shape"], raw["block_shape"]
    sides = {"shape": (d_in, d_out), "block_shape": (block_in, block_out)}
    return Entry(**raw | sides | {"density": float(raw["density"])})


def _are_sizes(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(v) is int and v > 0 for v in value)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _are_seconds(value: Any) -> bool:
    if not isinstance(value, dict) or "dense" not in value or not set(value) <= set(IMPLEMENTATIONS):
        return False
    return all(_is_positive(seconds) for seconds in value.values())
