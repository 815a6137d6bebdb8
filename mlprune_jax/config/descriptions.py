"""Descriptions for the JSON Schema, out of the docstrings of the settings' classes."""

from __future__ import annotations

import inspect
import re
from typing import Any

_SECTION = re.compile(r"^(?:Attributes|Raises):\n", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def describe(schema: dict[str, Any], cls: type) -> None:
    """Put what a class's docstring says into its schema; pydantic calls this when a schema is asked for, no earlier."""
    schema["description"] = _one_line(_SECTION.split(_docstring(cls))[0])
    texts = _attributes(cls)
    for name in schema["properties"].keys() & texts.keys():
        schema["properties"][name]["description"] = texts[name]


def _attributes(cls: type) -> dict[str, str]:
    """What the class, and those it inherits from, say of their attributes; the nearest counts."""
    pairs = (pair for base in reversed(cls.__mro__) for pair in _ATTRIBUTE.findall(_docstring(base)))
    return {name: _one_line(text) for name, text in pairs}


def _docstring(cls: type) -> str:
    return inspect.getdoc(cls) or ""


def _one_line(text: str) -> str:
    """Markdown, as editors and docs/settings.md show it."""
    return " ".join(text.split()).replace("``", "`")
