"""The Triton kernel: its values under Triton's interpreter where torch is, its lowering where the CUDA plugin is."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KernelError, block_sparse_matmul, from_dense
from pallas_kernels.block_sparse_matmul import triton
from pallas_kernels.block_sparse_matmul.triton import tile_rows

SCRIPT = Path(__file__).with_name("triton_process.py")
TOP, NONE, ALL = [[1, 0], [1, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]
# tokens, mask, block, dtype, activation, bias, residual. No bfloat16: the interpreter multiplies its bits as integers.
CASES = [
    (1, TOP, (16, 16), "float32", None, False, False),
    (65, NONE, (16, 64), "float32", "gelu", True, True),
    (130, ALL, (64, 32), "float32", "gelu_tanh", True, False),
    (16, TOP, (32, 32), "float16", "gelu", False, True),
    (65, ALL, (32, 32), "float16", "gelu_tanh", True, True),
    (3, [[0, 1], [0, 0]], (128, 16), "float32", None, True, False),
    (20, ALL, (16, 128), "float16", "gelu", False, False),
]
# A float32 sum of up to 128 products; a half-precision result is rounded once.
TOLERANCE = {"float32": 2**-23 * 8 * 128**0.5, "float16": 2**-11}


def in_a_process(work, cases, **environment):
    variables = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard", "PYTHONPATH": str(Path.cwd()), **environment}
    command = [sys.executable, SCRIPT, work]
    done = subprocess.run(
        command, input=json.dumps(cases), capture_output=True, text=True, timeout=240, env=variables, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not (find_spec("torch") and find_spec("triton")), reason="needs torch and triton")
def test_values_under_the_interpreter():
    names = ("tokens", "mask", "block", "dtype", "activation", "bias", "residual")
    errors = in_a_process("interpret", [dict(zip(names, case, strict=True)) for case in CASES], TRITON_INTERPRET="1")
    for case, error in zip(CASES, errors, strict=True):
        assert error <= TOLERANCE[case[3]], case


@pytest.mark.skipif(
    not (find_spec("jax_triton") and find_spec("jax_cuda13_plugin")),
    reason="needs jax-triton, and beside a CPU jaxlib the CUDA plugin wheel",
)
def test_lowers_for_cuda_at_bert_shapes():
    blocks = [(16, 16), (32, 32), (64, 64), (32, 64), (128, 128)]
    cases = [{"block": block, "activation": act} for block in blocks for act in (None, "gelu", "gelu_tanh")]
    assert all(in_a_process("lower", cases))


@pytest.mark.parametrize(
    ("tokens", "block_out", "rows"), [(1, 16, 16), (17, 32, 32), (128, 64, 128), (9999, 64, 128), (9999, 128, 64)]
)
def test_a_program_takes_no_more_rows_than_there_are_tokens(tokens, block_out, rows):
    assert tile_rows(tokens, block_out) == rows


def test_without_a_gpu_it_is_refused():
    w = from_dense(np.ones((16, 16), np.float32), np.ones((1, 1), bool))
    with pytest.raises(KernelError, match=r"needs an NVIDIA GPU of compute capability 8\.0"):
        block_sparse_matmul(jnp.ones((2, 16)), w, implementation="triton")


@pytest.mark.skipif(find_spec("jax_triton") is not None, reason="jax-triton is here")
def test_without_jax_triton_the_error_says_so():
    w = from_dense(np.ones((16, 16), np.float32), np.ones((1, 1), bool))
    with pytest.raises(KernelError, match="needs jax-triton"):
        triton.matmul(jnp.ones((2, 16)), w, None, None, None)


def test_a_gradient_is_refused_with_the_way_out():
    w = from_dense(np.ones((16, 16), np.float32), np.ones((1, 1), bool))
    with pytest.raises(KernelError, match="implementation='xla'"):
        jax.grad(lambda x: triton.matmul(x, w, None, None, None).sum())(jnp.ones((2, 16)))
