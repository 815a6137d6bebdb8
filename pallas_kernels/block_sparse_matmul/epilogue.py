"""What happens to a float32 product before it is stored: bias, activation, residual, cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Literal["gelu", "gelu_tanh"]

_ERF_NUMERATOR = (
    0.00022905065861350646,
    0.0034082910107109506,
    0.050955695062380861,
    0.18520832239976145,
    1.128379143519084,
)
_ERF_DENOMINATOR = (
    -1.1791602954361697e-7,
    0.000023547966471313185,
    0.0010179625278914885,
    0.014070470171167667,
    0.11098505178285362,
    0.49746925110067538,
    1.0,
)
_ERF_LIMIT = 3.7439211627767994  # beyond it float32's erf is 1


def erf(x: Array) -> Array:
    """The error function of a float32 array as a quotient of polynomials: `lax.erf` has no GPU lowering in Pallas.

    At most 4.2e-7 from `jax.lax.erf`.
    """
    x = jnp.clip(x, -_ERF_LIMIT, _ERF_LIMIT)
    square = x * x
    return x * _polynomial(square, _ERF_NUMERATOR) / _polynomial(square, _ERF_DENOMINATOR)


def activate(y: Array, activation: Activation | None, *, erf: Callable[[Array], Array] = jax.lax.erf) -> Array:
    """GELU of a float32 array: "gelu" by the error function, "gelu_tanh" by its approximation."""
    if activation is None:
        return y
    if activation == "gelu":
        return 0.5 * y * (1.0 + erf(y * 0.7071067811865476))
    return 0.5 * y * (1.0 + jnp.tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)))


def finish(
    product: Float[Array, "*B D_out"],
    bias: Float[Array, "D_out"] | None,
    activation: Activation | None,
    residual: Float[Array, "*B D_out"] | None,
    dtype: Any,
) -> Float[Array, "*B D_out"]:
    """``activation(product + bias) + residual`` in float32, then cast: the order every implementation keeps."""
    y = product.astype(jnp.float32)
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    y = activate(y, activation)
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    return y.astype(dtype)


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    result = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result
