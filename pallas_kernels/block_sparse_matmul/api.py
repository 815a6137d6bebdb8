"""`block_sparse_matmul`: arguments checked once, an implementation picked, and the product."""

from __future__ import annotations

from importlib import import_module
from typing import Any, get_args

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from pallas_kernels.block_sparse_matmul.choose import Choice, choose
from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    check_implementation,
    runnable,
)
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockSparse, check_blocks

DTYPES = ("float32", "bfloat16", "float16")


def block_sparse_matmul(
    x: Shaped[Array, "..."],
    w: BlockSparse,
    *,
    bias: Shaped[Array, "..."] | None = None,
    residual: Shaped[Array, "..."] | None = None,
    activation: Activation | None = None,
    implementation: Implementation | None = None,
) -> Shaped[Array, "..."]:
    """``activation(x @ w + bias) + residual``, of which only the stored blocks of ``w`` are computed.

    Args:
        x: ``[..., d_in]``, any number of leading axes and tokens.
        w: packed ``[d_in, d_out]`` matrix in the dtype of ``x``.
        bias: ``[d_out]``.
        residual: ``[..., d_out]``, added after the activation.
        activation: "gelu" (error function), "gelu_tanh", or none.
        implementation: who computes; ``None`` picks by measured cost (`pallas_kernels.choose`). One that was asked
            for is never replaced by another.

    Returns:
        ``[..., d_out]`` in the dtype of ``x``; products are summed, and bias, activation and residual computed, in
        float32.

    Raises:
        KernelError: operands that do not fit, or an implementation that this device cannot run.

    Example:
        >>> w = from_dense(weight, mask)  # doctest: +SKIP
        >>> y = jax.jit(block_sparse_matmul)(x, w, bias=bias, activation="gelu")  # doctest: +SKIP
    """
    _check_operands(x, w, bias, residual, activation)
    tokens = x.reshape(-1, x.shape[-1])
    if implementation is None:
        implementation = choose_for(w, tokens.shape[0], activation).implementation
    elif implementation not in IMPLEMENTATIONS:
        raise KernelError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    check_implementation(implementation, w)
    if not tokens.size:
        return jnp.zeros((*x.shape[:-1], w.shape[1]), x.dtype)  # no kernel takes a grid of nothing
    matmul = import_module(f"pallas_kernels.block_sparse_matmul.{implementation}").matmul
    added = None if residual is None else residual.reshape(-1, residual.shape[-1])
    return matmul(tokens, w, bias, added, activation).reshape(*x.shape[:-1], w.shape[1])


def choose_for(w: BlockSparse, tokens: int, activation: Activation | None = None) -> Choice:
    """How a product with ``w`` runs on the default device when no implementation is asked for, and why.

    Args:
        w: packed matrix; without a pattern its padding blocks count as stored, as they are computed.
        tokens: rows of the left operand.
        activation: what follows the product.
    """
    stored = len(w.pattern.indices) if w.pattern else len(w.indices)
    rows, columns = w.grid
    facts = w.shape, w.block_shape, stored / (rows * columns), tokens, w.dtype
    return choose(*facts, activation=activation, allowed=runnable(w))


def _check_operands(x: Any, w: Any, bias: Any, residual: Any, activation: Any) -> None:
    if not isinstance(w, BlockSparse):
        raise KernelError(f"w must be a BlockSparse matrix (from_dense), got {type(w).__name__}")
    check_blocks(w.shape, w.block_shape)
    d_in, d_out = w.shape
    if x.ndim < 1 or x.shape[-1] != d_in:
        raise KernelError(f"x must end in {d_in} features, as w is {d_in}x{d_out} (in x out); got {x.shape}")
    if jnp.dtype(x.dtype).name not in DTYPES or x.dtype != w.dtype:
        raise KernelError(f"x and w need one dtype out of {', '.join(DTYPES)}; got {x.dtype} and {w.dtype}")
    for name, operand, shape in (("bias", bias, (d_out,)), ("residual", residual, (*x.shape[:-1], d_out))):
        if operand is not None and (operand.shape != shape or not jnp.issubdtype(operand.dtype, jnp.floating)):
            raise KernelError(f"{name} must be floating point {shape}, got {operand.dtype} {operand.shape}")
    if activation not in (None, *get_args(Activation)):
        raise KernelError(f"activation must be one of {', '.join(get_args(Activation))} or None, got {activation!r}")
