"""What the value of a setting may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from mlprune_jax.config.geometry import Integer, Real

Density = Annotated[Real, Field(gt=0, le=1)]
Rate = Annotated[Real, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1)]
Fraction = Annotated[Real, Field(ge=0, le=1)]


def parse_block(value: object) -> object:
    """Read "32x64" as (32, 64): block_in x block_out."""
    if isinstance(value, list | tuple):
        return value
    parts = str(value).lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"expected block_in x block_out such as 32x32, got {value!r}")
    return tuple(int(part) for part in parts)


_BLOCK_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^ *[0-9]+ *[xX] *[0-9]+ *$"},
        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
    ]
}
Block = Annotated[tuple[Count, Count], BeforeValidator(parse_block), WithJsonSchema(_BLOCK_SCHEMA)]
