"""`block_sparse_matmul`: arguments checked once, an implementation picked, and the product."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.device import compute_capability, platform
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import BlockSparse, check_blocks

Implementation = Literal["reference", "dense", "xla", "mosaic_gpu", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

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
        implementation = _choose(tokens, w)
    elif implementation not in IMPLEMENTATIONS:
        raise KernelError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    check_implementation(implementation, w)
    matmul = import_module(f"pallas_kernels.block_sparse_matmul.{implementation}").matmul
    added = None if residual is None else residual.reshape(-1, residual.shape[-1])
    return matmul(tokens, w, bias, added, activation).reshape(*x.shape[:-1], w.shape[1])


def check_implementation(implementation: Implementation, w: BlockSparse) -> None:
    """Refuse an implementation that the default device, or this matrix, cannot have.

    Raises:
        KernelError: with the reason.
    """
    if implementation == "xla" and w.pattern is None:
        raise KernelError("implementation xla unrolls the pattern, which this matrix carries in its arrays alone")
    if implementation in ("mosaic_gpu", "triton"):
        least = {"mosaic_gpu": (9, 0), "triton": (8, 0)}[implementation]
        found = compute_capability()
        if found is None or found < least:
            has = f"compute capability {found[0]}.{found[1]}" if found else f"platform {platform()}"
            raise KernelError(
                f"implementation {implementation} needs an NVIDIA GPU of compute capability {least[0]}.{least[1]} or "
                f"newer; the default device has {has}"
            )


def _choose(x: jax.Array, w: BlockSparse) -> Implementation:
    raise NotImplementedError


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
