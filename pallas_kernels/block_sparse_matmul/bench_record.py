"""What a bench writes: one JSON file, replaced whole after each cell, that a second run takes up where it ended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pallas_kernels.errors import KernelError


class Record:
    """Cells by key, and the environment they were measured in.

    A cell that was begun and never written (the process was killed, or a kernel never ended) counts as failed at the
    next run, which goes on behind it.
    """

    def __init__(self, path: Path, environment: dict[str, Any]) -> None:
        """Open or begin a file.

        Raises:
            KernelError: it holds cells of another device or version, or is no such file.
        """
        self.path = path
        self.content: dict[str, Any] = {"environment": environment, "cells": {}}
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text())
            before, self.content["cells"] = found["environment"], found["cells"]
        except (ValueError, KeyError, TypeError) as error:
            raise KernelError(f"{path} is no record of this bench ({error}); give another --out") from error
        changed = [
            name for name in ("device_kind", "jax", "dry_run", "cells") if before.get(name) != environment.get(name)
        ]
        if changed:
            was = ", ".join(f"{name} {before.get(name)} (now {environment[name]})" for name in changed)
            raise KernelError(f"{path} holds cells of another run: {was}; give another --out")
        self.content |= {name: value for name, value in found.items() if name not in self.content}
        if begun := self.content.pop("begun", None):
            self.content["cells"][begun] = {"failed": "a run ended inside this cell", "skip": True}

    def has(self, key: str) -> bool:
        """Whether a cell needs no measuring: it was measured, or a run ended in it.

        What raised, was refused or gave a wrong answer is tried again: kernels and what is installed may have changed.
        """
        cell = self.content["cells"].get(key)
        if cell is None:
            return False
        return cell.get("skip", False) or not ("failed" in cell or "refused" in cell or cell.get("ok") is False)

    def cells(self, prefix: str) -> dict[str, Any]:
        """The cells of one step."""
        return {key: cell for key, cell in self.content["cells"].items() if key.startswith(prefix)}

    def begin(self, key: str) -> None:
        """Note that a cell is being measured."""
        self.content["begun"] = key
        self.write()

    def add(self, key: str, cell: dict[str, Any]) -> None:
        """Write a measured cell, with the commit that it belongs to."""
        self.content["cells"][key] = cell | {"commit": self.content["environment"].get("commit")}
        self.content.pop("begun", None)
        self.write()

    def write(self) -> None:
        """Replace the file; a reader never finds half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_name(self.path.name + ".part")
        written.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(written, self.path)


class Budget:
    """Wall time that a run may take."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.longest = 0.0

    def allows(self) -> bool:
        """Whether one more cell as long as the longest fits."""
        return time.monotonic() + 1.2 * self.longest < self.end

    def spent(self, seconds: float) -> None:
        """Learn how long a cell took."""
        self.longest = max(self.longest, seconds)
