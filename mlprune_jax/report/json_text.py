"""Results as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(data: Any) -> str:
    """Indented JSON; NaN and infinity become null, for JSON has neither and other readers refuse Python's spelling."""
    return json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def finite(data: Any) -> Any:
    """Plain data with ``None`` for every number that is not finite."""
    if isinstance(data, dict):
        return {name: finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
