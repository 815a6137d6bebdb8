"""Run by test_triton.py in a process of its own: without the tests' import hook, which Triton cannot compile through.

``interpret``: the kernel on torch tensors under Triton's interpreter, which the environment must ask for. Cases as JSON
on standard input, the largest error of each over its largest value on standard output. ``lower``: cases to Triton IR.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import from_dense, pad_blocks
from pallas_kernels.block_sparse_matmul import reference, triton
from pallas_kernels.block_sparse_matmul.triton import tile_rows
from pallas_kernels.block_sparse_matmul.triton_kernel import product_kernel


def lowered(block, activation):
    """Whether the product of a BERT-base FC1 holds a Triton call once lowered for Hopper."""
    mask = np.random.default_rng(0).random((768 // block[0], 3072 // block[1])) < 0.2
    w = from_dense(np.ones((768, 3072), jnp.bfloat16), mask)
    x, bias = jnp.ones((4096, 768), jnp.bfloat16), jnp.ones(3072, jnp.bfloat16)
    product = jax.jit(lambda x, w, b: triton.matmul(x, w, b, None, activation, compute_capability=90))
    return "triton" in product.trace(x, w, bias).lower(lowering_platforms=("cuda",)).as_text()


def error(tokens, mask, block, dtype, activation, bias, residual):
    import torch

    def tensor(array):
        return torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, dtype))

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
        tensor(x),
        torch.from_numpy(np.array(w.offsets)),
        torch.from_numpy(np.array(w.indices)),
        tensor(w.values),
        tensor(added_bias) if bias else absent,
        tensor(added) if residual else absent,
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
    work = {"interpret": error, "lower": lowered}[sys.argv[1]]
    print(json.dumps([work(**case) for case in json.load(sys.stdin)]))
