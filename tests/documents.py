"""The Python examples of a document, extracted and executed."""

import re
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parents[1]


def examples(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


def execute(source: str, **names: Any) -> dict[str, Any]:
    """The names that ``source`` leaves, begun with ``names``."""
    names = {"__name__": "document"} | names
    # A user's program has JAX's own promotion; optax's Adam needs it.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(source, "document", "exec"), names)
    return names
