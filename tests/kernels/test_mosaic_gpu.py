"""The Hopper kernels without a GPU: values and races in Pallas' interpreter, and lowering for CUDA at real sizes."""

from dataclasses import replace
from functools import partial
from inspect import unwrap

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import KernelError, block_sparse_matmul
from pallas_kernels.block_sparse_matmul import mosaic_gpu, reference, workloads
from pallas_kernels.block_sparse_matmul.mosaic_gpu import DESIGNS, Tiling, plan
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiling import SHARED_MEMORY, check, shared_memory
from tests.kernels import interpreter, pairwise
from tests.kernels.mosaic_cases import EPILOGUES, FACTORS, assert_close, compare, label, small_size, takes

SAMPLE = pairwise.sample(FACTORS, takes)


def test_sample_is_pairwise():
    everything = set().union(*map(pairwise.pairs, pairwise.allowed_cases(FACTORS, takes)))
    assert set().union(*map(pairwise.pairs, SAMPLE)) == everything
    assert len(SAMPLE) < 40


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_matches_reference(case):
    compare(case, *small_size(case))


CASE = {"block": (32, 32), "dtype": "bfloat16", "kind": "random", "epilogue": "residual"}


@pytest.mark.parametrize(
    ("shape", "tokens", "tiling"),
    [
        ((128, 64), 200, Tiling("streaming", 128, 3, blocks_per_sm=2)),
        ((256, 96), 100, Tiling("x_stationary", 128, 2, strip=2, splits=2)),
        ((256, 96), 100, Tiling("x_shared", 128, 3, group=2)),
    ],
    ids=DESIGNS,
)
def test_several_thread_blocks_and_warpgroups(shape, tokens, tiling):
    """Tiles that share columns and rows, two multiplying warpgroups, a group that reaches past the last column."""
    compare(CASE, shape, tokens, tiling)


@pytest.mark.parametrize("block", [(128, 64), (64, 128)])
def test_blocks_of_128(block):
    compare(CASE | {"block": block}, (128, 128), 64, Tiling("x_stationary", 64, 2))


def test_values_without_padding_are_padded():
    """Strips of 4 of a matrix with 3 stored blocks."""
    w = workloads.make_matrix((64, 64), (32, 32), 0.75, jnp.bfloat16, padded=False)
    x, _, _ = workloads.make_operands(64, w.shape, jnp.bfloat16, bias=False, residual=False)
    product = partial(mosaic_gpu.matmul, x, w, None, None, None, tiling=Tiling("x_stationary", 64, 2, strip=4))
    found, raced = interpreter.run(lambda interpret: product(interpret=interpret))
    assert len(w.values) == 3
    assert not raced
    assert_close(found, reference.matmul(x, w, None, None, None), w)


def lowered(tokens, shape, block, design, epilogue, dtype=jnp.bfloat16):
    bias, residual, activation = EPILOGUES[epilogue]
    w = workloads.make_matrix(shape, block, 0.1, dtype).without_pattern()
    facts = jax.ShapeDtypeStruct
    x = facts((tokens, shape[0]), dtype)
    b = facts((shape[1],), jnp.float32) if bias else None  # as serving keeps them
    r = facts((tokens, shape[1]), dtype) if residual else None
    product = partial(mosaic_gpu.matmul, activation=activation, design=design)
    traced = jax.jit(lambda x, w, b, r: product(x, w, b, r)).trace(x, w, b, r)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    ("name", "block", "epilogue", "dtype"),
    [
        ("FC1", (64, 64), "bias, gelu", "bfloat16"),
        ("FC1", (32, 32), "bias, tanh gelu, residual", "bfloat16"),
        ("QKV", (16, 64), "plain", "float16"),
        ("O", (64, 32), "bias, gelu, residual", "bfloat16"),
        ("FC2", (32, 64), "bias, gelu, residual", "bfloat16"),
        ("O", (16, 16), "residual", "float16"),
        ("FC2", (128, 128), "residual", "bfloat16"),
    ],
)
def test_lowers_for_cuda(design, name, block, epilogue, dtype):
    """The interpreter accepts what the compiler does not: layouts, transposes, functions without a rule."""
    shape = workloads.MATRICES[name]
    refused = (design == "x_shared" and block[1] < 32) or (design == "x_stationary" and name == "FC2")
    if refused:
        with pytest.raises(KernelError, match=r"wide|bytes of shared memory"):
            plan(design, 4096, shape, block, 8, 132)
    else:
        assert "mosaic_gpu" in lowered(4096, shape, block, design, epilogue, jnp.dtype(dtype))


@pytest.mark.parametrize("tokens", workloads.TOKENS)
@pytest.mark.parametrize("name", workloads.MATRICES)
@pytest.mark.parametrize("block", workloads.SQUARE_BLOCKS + workloads.MIXED_BLOCKS)
def test_plan_fits_every_workload(tokens, name, block):
    shape = workloads.MATRICES[name]
    tiling = plan(None, tokens, shape, block, 64, 132)
    check(tiling, shape, block)
    assert shared_memory(tiling, shape, block) * tiling.blocks_per_sm <= SHARED_MEMORY
    if tokens < 1024:
        assert tiling.design == "streaming"
    else:
        expected = "x_stationary" if shape[0] == 768 else "x_shared" if block[1] >= 32 else "streaming"
        assert tiling.design == expected


def test_layers_of_one_size_share_a_kernel():
    """What is stored where is data: another pattern of as many blocks is the same trace, and scan over layers works."""
    x = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
    layers = [workloads.make_matrix((128, 128), (32, 32), 0.4, jnp.bfloat16, seed=seed) for seed in range(2)]
    assert layers[0].pattern != layers[1].pattern
    traced = jax.jit(lambda x, ws: [mosaic_gpu.matmul(x, w, None, None, None) for w in ws]).trace(x, layers)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("call @_compiled") == 2
    assert text.count("func.func private @_compiled") == 1

    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(w.without_pattern() for w in layers))

    def layer(x, w):
        return mosaic_gpu.matmul(x, w, None, None, None), None

    jax.jit(lambda x, ws: jax.lax.scan(layer, x, ws)[0]).trace(x, stacked).lower(lowering_platforms=("cuda",))


def test_float32_is_refused():
    w = workloads.make_matrix((64, 64), (32, 32), 0.5, jnp.float32)
    with pytest.raises(KernelError, match=r"got float32: .*TF32 and stored transposed; use implementation dense"):
        mosaic_gpu.matmul(jnp.ones((8, 64)), w, None, None, None)


def test_gradient_is_refused():
    w = workloads.make_matrix((64, 64), (32, 32), 0.5, jnp.bfloat16)

    def loss(x):
        return mosaic_gpu.matmul(x, w, None, None, None).astype(jnp.float32).sum()

    with pytest.raises(KernelError, match="no gradient; train with implementation='xla'"):
        jax.grad(loss)(jnp.ones((8, 64), jnp.bfloat16))

    def of_values(values):
        x = jnp.ones((8, 64), jnp.bfloat16)
        return mosaic_gpu.matmul(x, replace(w, values=values), None, None, None)[0, 0]

    with pytest.raises(KernelError, match="no gradient"):
        jax.jit(jax.grad(of_values))(w.values)


def test_design_that_cannot_take_the_matrix():
    x = jnp.ones((8, 64), jnp.bfloat16)
    narrow = workloads.make_matrix((64, 64), (32, 16), 0.5, jnp.bfloat16)
    with pytest.raises(KernelError, match="64x64 matrix in blocks of 32x16: x_shared takes blocks at least 32 wide"):
        mosaic_gpu.matmul(x, narrow, None, None, None, design="x_shared")
    with pytest.raises(
        KernelError, match=r"x_stationary.*needs .* bytes of shared memory, and a thread block has 232448"
    ):
        plan("x_stationary", 4096, (3072, 768), (64, 64), 100, 132)
    with pytest.raises(KernelError, match="design must be one of streaming, x_stationary, x_shared, got 'fastest'"):
        unwrap(mosaic_gpu.matmul)(x, narrow, None, None, None, design="fastest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 100}, "rows must be a multiple of 64 up to 128"),
        ({"stages": 1}, "2 to 32 stages"),
        ({"stages": 32}, "bytes of shared memory"),
    ],
)
def test_tiling_that_cannot_run(change, message):
    with pytest.raises(KernelError, match=message):
        check(replace(Tiling("streaming", 128, 2), **change), (128, 128), (64, 64))


def test_too_many_sums():
    with pytest.raises(KernelError, match="192 registers of sums"):
        check(Tiling("x_shared", 64, 2, group=6), (128, 384), (16, 64))


def test_needs_a_gpu():
    w = workloads.make_matrix((64, 64), (32, 32), 0.5, jnp.bfloat16)
    with pytest.raises(KernelError, match=r"mosaic_gpu needs an NVIDIA GPU of compute capability 9.0 .* platform cpu"):
        block_sparse_matmul(jnp.ones((8, 64), jnp.bfloat16), w, implementation="mosaic_gpu")
