"""The grid of cases of the Hopper kernels, and one case compared with the reference in the interpreter."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_matmul import mosaic_gpu, reference, workloads
from pallas_kernels.block_sparse_matmul.mosaic_gpu import DESIGNS, Tiling
from tests.kernels import interpreter

EPILOGUES = {
    "plain": (False, False, None),
    "bias, gelu": (True, False, "gelu"),
    "residual": (False, True, None),
    "bias, tanh gelu, residual": (True, True, "gelu_tanh"),
    "bias, gelu, residual": (True, True, "gelu"),
}
FACTORS = {
    "block": ((16, 16), (32, 32), (64, 64), (16, 64), (64, 32), (32, 64)),
    "dtype": ("bfloat16", "float16"),
    "kind": ("empty column", "single block", "full column", "all empty", "ragged tokens"),
    "design": DESIGNS,
    "epilogue": tuple(EPILOGUES),
}
# As few threads as a design can have, and fewer stages than steps; what only larger ones have is tested apart.
SMALL = {
    "streaming": Tiling("streaming", 64, 2),
    "x_stationary": Tiling("x_stationary", 64, 2),
    "x_shared": Tiling("x_shared", 64, 2, group=2),
}


def takes(case):
    return case["design"] != "x_shared" or case["block"][1] >= 32


def small_size(case):
    """Shape of the matrix, tokens and tiling of a case that takes the interpreter a second or two."""
    return (256, 2 * case["block"][1]), 50 if case["kind"] == "ragged tokens" else 64, SMALL[case["design"]]


def label(case):
    return "-".join(str(value).replace(" ", "_") for value in case.values())


def assert_close(found, expected, w):
    """Every output within the tolerance that follows from the dtype and the length of the sums."""
    assert found.dtype == w.dtype
    expected = np.asarray(expected, np.float32)
    limit = workloads.tolerance(w, w.dtype) * max(1.0, float(np.abs(expected).max()))
    assert np.abs(np.asarray(found, np.float32) - expected).max() <= limit


def compare(case, shape, tokens, tiling, density=0.5):
    """The kernel in the interpreter against the reference, each output within the derived tolerance."""
    bias, residual, activation = EPILOGUES[case["epilogue"]]
    dtype = jnp.dtype(case["dtype"])
    kind = "random" if case["kind"] == "ragged tokens" else case["kind"]
    w = workloads.make_matrix(shape, case["block"], density, dtype, kind=kind, padded=case["kind"] != "all empty")
    x, b, r = workloads.make_operands(tokens, shape, dtype, bias=bias, residual=residual)
    b = None if b is None else b.astype(jnp.float32)  # as serving keeps them
    product = partial(mosaic_gpu.matmul, x, w, b, r, activation, tiling=tiling)
    found, raced = interpreter.run(lambda interpret: product(interpret=interpret))
    assert not raced
    assert_close(found, reference.matmul(x, w, b, r, activation), w)
