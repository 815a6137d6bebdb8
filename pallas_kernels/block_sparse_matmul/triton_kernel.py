"""The Triton kernel itself; importing this module imports triton, so only `triton.matmul` and its tests do."""

import triton  # pyright: ignore[reportMissingImports]  # not a dependency: it comes with jax-triton
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit  # pyright: ignore[reportAttributeAccessIssue]  # it takes the file beside this one for the package
def product_kernel(
    x_ptr,
    offsets_ptr,
    indices_ptr,
    values_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    TOKENS: tl.constexpr,
    D_IN: tl.constexpr,
    D_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """One program: ``ROWS`` tokens of one column of blocks, its stored blocks one after the other."""
    column = tl.program_id(0)
    start = tl.load(offsets_ptr + column)
    end = tl.load(offsets_ptr + column + 1)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    features = column * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inner = tl.arange(0, BLOCK_IN)
    real = (rows < TOKENS)[:, None]
    x_tile = x_ptr + rows[:, None] * D_IN + inner[None, :]
    block = values_ptr + inner[:, None] * BLOCK_OUT + tl.arange(0, BLOCK_OUT)[None, :]
    total = tl.zeros((ROWS, BLOCK_OUT), tl.float32)
    for stored in range(start, end):
        at = tl.load(indices_ptr + stored) * BLOCK_IN
        x = tl.load(x_tile + at, mask=real, other=0.0)
        weight = tl.load(block + stored * (BLOCK_IN * BLOCK_OUT))
        # "ieee": float32 operands stay float32; half precision is not touched by it.
        total = tl.dot(x, weight, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + features).to(tl.float32)[None, :]
    if ACTIVATION == "gelu":
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":
        scaled = 0.7978845608028654 * (total + 0.044715 * total * total * total)
        total = total * tl.sigmoid(2.0 * scaled)  # 0.5 (1 + tanh z) = sigmoid 2z
    at_out = rows[:, None] * D_OUT + features[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + at_out, mask=real, other=0.0).to(tl.float32)
    tl.store(out_ptr + at_out, total.to(out_ptr.dtype.element_ty), mask=real)
