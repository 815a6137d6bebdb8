"""One contract for every implementation of the block-sparse product, and what is particular to `xla`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pallas_kernels import BlockSparse, KernelError, block_sparse_matmul, choose_for, pad_blocks, to_dense
from pallas_kernels.block_sparse_matmul import epilogue, implementations, workloads, xla
from pallas_kernels.block_sparse_matmul.xla import CHUNK
from tests.kernels import pairwise

CPU_IMPLEMENTATIONS = ("reference", "dense", "xla")

FACTORS = {
    "implementation": CPU_IMPLEMENTATIONS,
    "dtype": ("float32", "bfloat16", "float16"),
    "block": ((16, 16), (32, 32), (64, 64), (16, 64), (64, 32)),
    "kind": ("random", "empty column", "single block", "full column", "all empty", "full"),
    "tokens": ((1,), (3,), (65,), (2, 1, 5), (CHUNK + 1,), (0,)),
    "bias": (False, True),
    "residual": (False, True),
    "activation": (None, "gelu", "gelu_tanh"),
}
SAMPLE = pairwise.sample(FACTORS)


def make(case, shape=(128, 128)):
    """A padded matrix and operands of one case."""
    kind, density = ("random", 1.0) if case["kind"] == "full" else (case["kind"], 0.4)
    dtype = jnp.dtype(case["dtype"])
    w = workloads.make_matrix(shape, case["block"], density, dtype, kind=kind)
    count = int(np.prod(case["tokens"]))
    x, bias, residual = workloads.make_operands(count, shape, dtype, bias=case["bias"], residual=case["residual"])
    x = x.reshape(*case["tokens"], shape[0])
    return x, w, bias, None if residual is None else residual.reshape(*case["tokens"], shape[1])


def exact(x, w, bias, residual, activation):
    """The product in float64, written without jax."""
    y = np.asarray(x, np.float64) @ np.asarray(to_dense(w), np.float64)
    if bias is not None:
        y = y + np.asarray(bias, np.float64)
    if activation == "gelu":
        y = 0.5 * y * (1 + scipy.special.erf(y / np.sqrt(2)))
    if activation == "gelu_tanh":
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y if residual is None else y + np.asarray(residual, np.float64)


def test_erf_is_as_near_as_its_docstring_says():
    x = jnp.linspace(-6, 6, 20_001)
    assert 0 < float(jnp.abs(epilogue.erf(x) - jax.lax.erf(x)).max()) <= 4.2e-7


def label(case):
    return "-".join(str(value).replace(" ", "") for value in case.values())


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_equals_the_exact_product(case):
    x, w, bias, residual = make(case)
    options = {"bias": bias, "residual": residual, "activation": case["activation"]}
    found = jax.jit(block_sparse_matmul, static_argnames=("activation", "implementation"))(
        x, w, implementation=case["implementation"], **options
    )
    expected = exact(x, w, bias, residual, case["activation"])
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    # `tolerance` covers sqrt(kept K) roundings of float32 sums and one cast; the exact product adds no error.
    limit = workloads.tolerance(w, x.dtype) * max(1.0, np.abs(expected).max(initial=0))
    assert np.abs(np.asarray(found, np.float64) - expected).max(initial=0) <= limit


def gradients(implementation, x, w, bias, residual):
    """Of a scalar function of the product, by x, values, bias and residual."""
    coefficients = jnp.cos(jnp.arange(x.shape[0] * w.shape[1], dtype=jnp.float32)).reshape(-1, w.shape[1])

    def weighted(x, values, bias, residual):
        matrix = BlockSparse(values, w.indices, w.offsets, w.shape, w.pattern)
        y = block_sparse_matmul(
            x, matrix, bias=bias, residual=residual, activation="gelu", implementation=implementation
        )
        return (y.astype(jnp.float32) * coefficients).sum()

    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2, 3)))(x, w.values, bias, residual)


@pytest.mark.parametrize("kind", ["empty column", "all empty"])
@pytest.mark.parametrize("block", [(16, 16), (32, 64)])
@pytest.mark.parametrize("tokens", [5, CHUNK + 3])
def test_gradients_of_xla_are_those_of_dense(block, kind, tokens):
    case = {"block": block, "kind": kind, "dtype": "float32", "tokens": (tokens,), "bias": True, "residual": True}
    operands = make(case, (64, 128))
    w = operands[1]
    stored = int(w.offsets[-1])
    assert len(w.values) > stored
    of_xla = gradients("xla", *operands)
    for found, expected in zip(of_xla, gradients("dense", *operands), strict=True):
        # Sums over the tokens, or over the features of the output, in another order.
        terms = max(tokens, w.shape[1])
        limit = 4 * np.finfo(np.float32).eps * terms**0.5 * max(1.0, float(np.abs(expected).max(initial=0)))
        assert np.abs(np.asarray(found) - np.asarray(expected)).max(initial=0) <= limit
    assert not np.asarray(of_xla[1])[stored:].any()


def test_packed_matrix_can_be_trained():
    """Steps along the gradient of the stored blocks alone reach a packed target."""
    w = workloads.make_matrix((64, 64), (32, 32), 0.75, jnp.float32)
    x, _, _ = workloads.make_operands(128, w.shape, jnp.float32, bias=False, residual=False)
    target = block_sparse_matmul(x, w, implementation="reference")

    @jax.jit
    def step(values):
        def loss(values):
            matrix = BlockSparse(values, w.indices, w.offsets, w.shape, w.pattern)
            return jnp.square(block_sparse_matmul(x, matrix, implementation="xla") - target).mean()

        value, gradient = jax.value_and_grad(loss)(values)
        return values - 10.0 * gradient, value

    values, first = step(jnp.zeros_like(w.values))
    for _ in range(50):
        values, last = step(values)
    assert last < 1e-3 * first


def compiled(implementation, tokens=64, shape=(128, 256)):
    w = workloads.make_matrix(shape, (32, 32), 0.4, jnp.float32)
    x, _, _ = workloads.make_operands(tokens, shape, jnp.float32, bias=False, residual=False)
    function = jax.jit(lambda x, w: block_sparse_matmul(x, w, implementation=implementation))
    return w, function.lower(x, w).compile().as_text()


@pytest.mark.parametrize("shape", [(128, 256), (256, 128)], ids=["by rows", "by columns"])
@pytest.mark.parametrize("tokens", [64, 3 * CHUNK])
def test_xla_has_no_dense_product_and_no_weights_in_the_executable(tokens, shape):
    """One product of each row of blocks, as wide as it has blocks, or of each column."""
    w, text = compiled("xla", tokens, shape)
    widths = sorted(int(width) for width in re.findall(r"= f32\[\d+,(\d+)\]\S* dot\(", text))
    if shape == (128, 256):
        assert widths == sorted(32 * n for n in np.bincount(w.pattern.indices) if n)
    else:
        assert widths == [32] * np.count_nonzero(np.diff(w.pattern.offsets))
    assert max(widths) < shape[1]
    # The blocks come in as an argument; the largest constant is an index or a scalar.
    assert re.search(rf"f32\[{len(w.values)},32,32\]\S* parameter\(", text)
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"= f32\[([\d,]+)\]\S* constant", text)]
    assert max(sizes, default=0) < 32 * 32


def test_the_search_for_dense_products_finds_one():
    _, text = compiled("dense")
    assert re.search(r"= f32\[64,256\]\S* dot\(", text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [64, 3 * CHUNK])
def test_xla_lowers_for_tpu(tokens, dtype):
    w = workloads.make_matrix((128, 256), (16, 32), 0.4, jnp.dtype(dtype))
    x, _, _ = workloads.make_operands(tokens, w.shape, jnp.dtype(dtype), bias=False, residual=False)
    function = jax.jit(lambda x, w: block_sparse_matmul(x, w, implementation="xla"))
    assert "dot_general" in function.trace(x, w).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_equal_patterns_do_not_retrace(implementation):
    traces = []

    @jax.jit
    def product(x, w):
        traces.append(1)
        return block_sparse_matmul(x, w, implementation=implementation)

    x = jnp.ones((3, 64))
    for _ in range(2):
        product(x, workloads.make_matrix((64, 64), (32, 32), 0.75, jnp.float32))
    assert len(traces) == 1


def test_what_is_not_asked_for_is_chosen_from_static_facts():
    w = workloads.make_matrix((64, 64), (32, 32), 0.75, jnp.float32)
    x = jnp.ones((3, 64))
    choice = choose_for(w, 3)
    chosen = jax.jit(block_sparse_matmul)(x, w)
    np.testing.assert_array_equal(
        chosen,
        jax.jit(block_sparse_matmul, static_argnames="implementation")(x, w, implementation=choice.implementation),
    )
    # Layers of one shape share a trace only without patterns; xla is then out of the question.
    assert choose_for(w.without_pattern(), 3).implementation == "dense"
    jax.jit(block_sparse_matmul)(x, w.without_pattern())


def test_layers_share_one_trace_under_scan():
    layers = [workloads.make_matrix((64, 64), (32, 32), 0.5, jnp.float32, seed=seed) for seed in (0, 1)]
    assert layers[0].pattern != layers[1].pattern
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(w.without_pattern() for w in layers))
    x = jnp.ones((3, 64))
    found, _ = jax.lax.scan(lambda x, w: (block_sparse_matmul(x, w, implementation="dense"), None), x, stacked)
    expected = x
    for w in layers:
        expected = block_sparse_matmul(expected, w, implementation="reference")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_xla_groups_of_narrow_columns_may_be_empty(padded):
    shape = (64, 64)
    some = workloads.make_matrix(shape, (16, 16), 0.5, jnp.float32, kind="single block", padded=padded)
    none = workloads.make_matrix(shape, (16, 16), 0.5, jnp.float32, kind="all empty", padded=padded)
    x = jnp.ones((3, 64))
    np.testing.assert_array_equal(block_sparse_matmul(x, none, implementation="xla"), np.zeros((3, 64)))
    np.testing.assert_allclose(
        block_sparse_matmul(x, some, implementation="xla"), exact(x, some, None, None, None), atol=1e-5
    )


W = workloads.make_matrix((64, 96), (32, 32), 0.5, jnp.float32)
X = np.ones((2, 64), np.float32)
BAD = {
    "w must be a BlockSparse matrix .* got": (X, np.ones((64, 96), np.float32), {}),
    "x must end in 64 features": (np.ones((2, 96), np.float32), W, {}),
    "x and w need one dtype": (X.astype(np.float16), W, {}),
    "got int32 and": (X.astype(np.int32), W, {}),
    r"bias must be floating point \(96,\)": (X, W, {"bias": np.ones(64, np.float32)}),
    "bias must be floating point .* got int": (X, W, {"bias": np.ones(96, np.int32)}),
    r"residual must be floating point \(2, 96\)": (X, W, {"residual": np.ones((3, 96), np.float32)}),
    "implementation must be one of": (X, W, {"implementation": "fast"}),
    "needs an NVIDIA GPU of compute capability 9.0": (X, W, {"implementation": "mosaic_gpu"}),
    "needs an NVIDIA GPU of compute capability 8.0": (X, W, {"implementation": "triton"}),
    "xla unrolls the pattern": (X, W.without_pattern(), {"implementation": "xla"}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
    x, w, options = BAD[message]
    function = getattr(block_sparse_matmul, "__wrapped__", block_sparse_matmul)  # without the tests' type checks
    with pytest.raises(KernelError, match=message):
        function(jnp.asarray(x), w, **{name: _array(value) for name, value in options.items()})


def test_mosaic_is_refused_where_it_cannot_be_traced(monkeypatch):
    monkeypatch.setattr(implementations, "compute_capability", lambda: (9, 0))
    w = workloads.make_matrix((64, 64), (32, 32), 0.5, jnp.bfloat16)
    implementations.check_implementation("mosaic_gpu", w)
    with jax.enable_x64(True), pytest.raises(KernelError, match="cannot be traced under jax_enable_x64"):
        implementations.check_implementation("mosaic_gpu", w)


def _array(value):
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def test_more_padding_changes_nothing():
    x = jnp.asarray(X)
    for implementation in CPU_IMPLEMENTATIONS:
        found = block_sparse_matmul(x, pad_blocks(W, len(W.values) + 5), implementation=implementation)
        np.testing.assert_array_equal(found, block_sparse_matmul(x, W, implementation=implementation))


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (64, 64)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3])
def test_an_unrolled_matrix_gives_the_same_product(block, density):
    """Bit for bit: the same parts, made once on the host instead of in every call; rows that chunks do not divide."""
    w = pad_blocks(workloads.make_matrix((128, 192), block, density, dtype=jnp.float32))
    x, bias = jax.random.normal(jax.random.key(0), (301, 128)), jax.random.normal(jax.random.key(1), (192,))
    added = jax.random.normal(jax.random.key(2), (301, 192))
    once = jax.jit(xla.multiply, static_argnums=4)(x, xla.unroll(w), bias, added, "gelu")
    np.testing.assert_array_equal(once, jax.jit(xla.matmul, static_argnums=4)(x, w, bias, added, "gelu"))


def test_rows_that_chunks_do_not_divide_are_not_copied():
    """No second array of the result's size: padding had one cut from the padded result, slower than the product."""
    w = xla.unroll(workloads.make_matrix((64, 512), (16, 16), 0.1, jnp.float32))
    x = jnp.ones((1001, 64), jnp.float32)
    compiled = jax.jit(lambda x, w: xla.multiply(x, w, None, None, None)).lower(x, w).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1001 * 512 * 4


def test_xla_of_many_layers_holds_results_of_few_at_once():
    """Each layer's result, of several chunks of tokens, is 128 KB."""
    w = xla.unroll(workloads.make_matrix((64, 64), (16, 16), 0.5, jnp.float32))

    def layers(x, weights):
        for weight in weights:
            x = xla.multiply(x, weight, None, None, "gelu")
        return x

    x = jnp.ones((512, 64), jnp.float32)
    two, ten = (
        jax.jit(layers).lower(x, [w] * count).compile().memory_analysis().temp_size_in_bytes for count in (2, 10)
    )
    assert ten < two + 2 * x.nbytes
