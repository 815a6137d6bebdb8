"""Results as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(data: Any) -> str:
    """Indented JSON; NaN and infinity become null, for JSON has neither and other readers refuse Python's spelling."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
