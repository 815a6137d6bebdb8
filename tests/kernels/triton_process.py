"""Run by test_triton.py in a process of its own: the Triton kernel under Triton's interpreter, on torch tensors.

Reads cases as JSON on standard input and writes the largest error of each, over its largest value, as JSON.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import jax.numpy as jnp
import numpy as np
import torch

from pallas_kernels import from_dense, pad_blocks
from pallas_kernels.block_sparse_matmul import reference
from pallas_kernels.block_sparse_matmul.triton import tile_rows
from pallas_kernels.block_sparse_matmul.triton_kernel import product_kernel


def tensor(array, dtype):
    return torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, dtype))


def error(tokens, mask, block, dtype, activation, bias, residual):
    rng = np.random.default_rng(0)
    mask = np.array(mask, bool)
    d_in, d_out = (n * b for n, b in zip(mask.shape, block, strict=True))
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    w = pad_blocks(from_dense(draw(d_in, d_out), mask), int(mask.sum()) + 2)
    x = draw(tokens, d_in)
    added_bias = draw(d_out) if bias else None
    added = draw(tokens, d_out) if residual else None
    wanted = np.asarray(reference.matmul(x, w, added_bias, added, activation), np.float32)
    out = torch.zeros(tokens, d_out, dtype=getattr(torch, dtype))
    rows = tile_rows(tokens, block[1])
    absent = torch.zeros(1)
    product_kernel[(mask.shape[1], -(-tokens // rows))](
        tensor(x, dtype),
        torch.from_numpy(np.array(w.offsets)),
        torch.from_numpy(np.array(w.indices)),
        tensor(w.values, dtype),
        tensor(added_bias, dtype) if bias else absent,
        tensor(added, dtype) if residual else absent,
        out,
        TOKENS=tokens,
        D_IN=d_in,
        D_OUT=d_out,
        ROWS=rows,
        BLOCK_IN=block[0],
        BLOCK_OUT=block[1],
        HAS_BIAS=bias,
        HAS_RESIDUAL=residual,
        ACTIVATION=activation or "",
    )
    return float(np.abs(out.float().numpy() - wanted).max() / max(np.abs(wanted).max(), 1.0))


if __name__ == "__main__":
    print(json.dumps([error(**case) for case in json.load(sys.stdin)]))
