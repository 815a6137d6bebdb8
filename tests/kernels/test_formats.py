"""Block-CSC: packing is exact for any mask, damage is refused, and a matrix is a well-behaved pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import (
    BLOCK_SIDES,
    BlockSparse,
    KernelError,
    block_mask,
    concat_columns,
    density,
    from_dense,
    from_parts,
    pad_blocks,
    to_dense,
)
from pallas_kernels.formats import bucket_size

DTYPES = ("float32", "bfloat16", "float16")


def make(mask, block_shape=(16, 32), dtype="float32", seed=0):
    """Dense values, zero outside the mask, and the packed matrix."""
    mask = np.asarray(mask, bool)
    shape = tuple(np.multiply(mask.shape, block_shape))
    values = np.random.default_rng(seed).standard_normal(shape).astype(jnp.dtype(dtype))
    dense = np.where(np.kron(mask, np.ones(block_shape, bool)), values, np.zeros_like(values))
    return dense, from_dense(values, mask)


def bits(array):
    return np.asarray(array).tobytes()


# Few geometries, and arrays of one size, so that the examples share compiled functions.
GEOMETRIES = (
    ((1, 1), (128, 16), "float16"),
    ((3, 2), (16, 64), "float32"),
    ((2, 3), (64, 32), "bfloat16"),
    ((4, 3), (32, 32), "float32"),
    ((1, 4), (16, 128), "bfloat16"),
)
MOST = 12


@st.composite
def cases(draw):
    (rows, columns), block_shape, dtype = draw(st.sampled_from(GEOMETRIES))
    stored = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return np.reshape(stored, (rows, columns)), block_shape, dtype, draw(st.integers(0, 99))


@given(cases())
def test_packing_is_exact(case):
    mask, block_shape, dtype, _ = case
    dense, packed = make(*case)
    assert packed.shape == dense.shape
    assert packed.dtype == jnp.dtype(dtype)
    assert packed.block_shape == block_shape
    assert len(packed.values) == mask.sum()
    np.testing.assert_array_equal(block_mask(packed), mask)
    assert density(packed) == pytest.approx(mask.mean())
    # Padding changes nothing, and the same arrays make the same matrix.
    padded = pad_blocks(packed, MOST)
    assert len(padded.values) == MOST
    again = from_parts(padded.values, padded.indices, padded.offsets, padded.shape)
    assert again.pattern == packed.pattern
    assert bits(jax.jit(to_dense)(again.without_pattern())) == bits(dense)


@pytest.mark.parametrize("sides", [(side, other) for side in BLOCK_SIDES for other in BLOCK_SIDES])
def test_every_block_shape(sides):
    dense, packed = make([[1, 0], [1, 1]], sides)
    assert bits(to_dense(packed)) == bits(dense)


@pytest.mark.parametrize("fill", [False, True], ids=["all empty", "full"])
@pytest.mark.parametrize("block_shape", [(16, 64), (64, 32)])
def test_extremes(block_shape, fill):
    dense, packed = make(np.full((2, 3), fill), block_shape)
    assert bits(to_dense(packed)) == bits(dense)
    assert density(packed) == float(fill)


def test_block_shape_instead_of_mask_stores_what_is_not_zero():
    dense, packed = make([[1, 0, 1], [0, 0, 1]])
    found = from_dense(dense, block_shape=(16, 32))
    assert found.pattern == packed.pattern
    assert bits(found.values) == bits(packed.values)


def test_order_of_the_documented_example():
    _, packed = make([[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert packed.pattern.indices == (0, 2, 0)
    assert packed.pattern.offsets == (0, 2, 2, 3)
    assert [packed.pattern.column(j) for j in range(3)] == [(0, 2), (), (0,)]


@pytest.mark.parametrize("widths", [(2,), (1, 3, 2)], ids=str)
def test_concat_columns(widths):
    rng = np.random.default_rng(0)
    pairs = [make(rng.random((3, width)) < 0.5, seed=i) for i, width in enumerate(widths)]
    joined = concat_columns([pad_blocks(packed) for _, packed in pairs])
    assert bits(to_dense(joined)) == bits(np.concatenate([dense for dense, _ in pairs], axis=1))


def test_concat_columns_refuses_what_does_not_fit():
    with pytest.raises(KernelError, match="one input size, block shape and dtype"):
        concat_columns([make([[1]])[1], make([[1]], dtype="float16")[1]])
    with pytest.raises(KernelError, match=r"got \[\]"):
        concat_columns([])


def test_bucket_sizes_rise_and_stay_close():
    sizes = [bucket_size(n) for n in range(1, 3000)]
    assert sizes == sorted(sizes)
    assert all(size % 8 == 0 and n <= size < n + max(8, n / 8) for n, size in enumerate(sizes, 1))
    assert [bucket_size(size) for size in sizes] == sizes
    assert len(set(sizes)) < 80


def test_pad_blocks_refuses_to_shrink():
    with pytest.raises(KernelError, match="cannot pad 2 blocks to 1"):
        pad_blocks(make([[1, 1]])[1], 1)


def test_pytree_round_trip():
    dense, packed = make([[1, 0], [1, 1]])
    leaves, structure = jax.tree.flatten(packed)
    assert len(leaves) == 3
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, BlockSparse)
    assert bits(to_dense(again)) == bits(dense)
    doubled = jax.jit(lambda w: jax.tree.map(lambda leaf: leaf + leaf, w.values) + to_dense(w)[0, 0])(packed)
    assert doubled.shape == packed.values.shape
    assert packed.astype(jnp.bfloat16).dtype == jnp.bfloat16


def test_equal_patterns_share_a_trace():
    traces = []

    @jax.jit
    def spread(w):
        traces.append(w.shape)
        return to_dense(w)

    for seed in (0, 1):
        dense, packed = make([[1, 0], [1, 1]], seed=seed)
        assert bits(spread(packed)) == bits(dense)
    assert len(traces) == 1
    spread(make([[1, 1], [0, 1]])[1])
    assert len(traces) == 2
    # Without patterns only the sizes count.
    for mask in ([[1, 0], [1, 1]], [[1, 1], [0, 1]]):
        dense, packed = make(mask)
        assert bits(spread(packed.without_pattern())) == bits(dense)
    assert len(traces) == 3


def test_gradient_of_spreading_gathers_the_blocks():
    _, packed = make([[1, 0], [1, 1]])
    padded = pad_blocks(packed)
    coefficients = jnp.arange(padded.shape[0] * padded.shape[1], dtype=jnp.float32).reshape(padded.shape)

    def weighted(values):
        return (to_dense(BlockSparse(values, padded.indices, padded.offsets, padded.shape, None)) * coefficients).sum()

    gradient = np.asarray(jax.grad(weighted)(padded.values))
    np.testing.assert_array_equal(gradient[:3], from_dense(coefficients, block_mask(packed)).values)
    assert not gradient[3:].any()


def parts(**changes):
    """The parts of a padded matrix with the columns (0, 2), (), (1), and one change."""
    _, packed = make([[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    packed = pad_blocks(packed, 5)
    found = {name: np.array(getattr(packed, name)) for name in ("values", "indices", "offsets")}
    return found | {"shape": packed.shape} | changes


DAMAGE = {
    "values must be floating point": {"values": np.zeros((5, 16, 32), np.int32)},
    r"values must be .* got float32 \(5, 16\)": {"values": np.zeros((5, 16), np.float32)},
    "block sides must be one of": {"values": np.zeros((5, 8, 32), np.float32)},
    "do not divide": {"shape": (48, 100)},
    "indices must be 5 integers": {"indices": np.zeros(4, np.int32)},
    r"indices must be 5 integers, got float32": {"indices": np.zeros(5, np.float32)},
    "offsets must be 4 integers": {"offsets": np.zeros(3, np.int32)},
    "offsets must rise from 0 .* got .1 2 2 3": {"offsets": np.array([1, 2, 2, 3])},
    "offsets must rise": {"offsets": np.array([0, 2, 1, 3])},
    "to at most 5 blocks": {"offsets": np.array([0, 2, 2, 6])},
    r"indices\[1\] is 3: the matrix has 3 rows": {"indices": np.array([0, 3, 1, 0, 0])},
    r"indices\[2\] is -1": {"indices": np.array([0, 2, -1, 0, 0])},
    r"indices\[1\] does not rise": {"indices": np.array([2, 0, 1, 0, 0])},
    r"indices\[1\] does not rise within its column: a block is stored twice": {"indices": np.array([2, 2, 1, 0, 0])},
    "padding blocks .from 3 on": {"indices": np.array([0, 2, 1, 0, 1])},
    "padding blocks .* must be zero": {"values": np.ones((5, 16, 32), np.float32)},
}


def test_undamaged_parts_are_taken():
    assert from_parts(**parts()).pattern.indices == (0, 2, 1)


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_parts_are_refused(message):
    with pytest.raises(KernelError, match=message):
        from_parts(**parts(**DAMAGE[message]))


BAD_PACKING = {
    "a mask or a block_shape, and not both": (np.ones((32, 32), np.float32), None, None),
    "floating point values, got int64": (np.ones((32, 32), np.int64), None, (16, 16)),
    "jax would round float64 values": (np.ones((32, 32)), None, (16, 16)),
    r"does not divide a matrix of shape \(32, 32, 32\)": (
        np.ones((32, 32, 32), np.float32),
        np.ones((2, 2), bool),
        None,
    ),
    "True = stored, got float64": (np.ones((32, 32), np.float32), np.ones((2, 2)), None),
    r"does not divide a matrix of shape \(32, 32\)": (np.ones((32, 32), np.float32), np.ones((3, 2), bool), None),
    r"a block mask of shape \(2,\)": (np.ones((32, 32), np.float32), np.ones(2, bool), None),
    "got 8x16": (np.ones((32, 32), np.float32), None, (8, 16)),
    "do not divide a matrix of 32x48": (np.ones((32, 48), np.float32), None, (16, 32)),
    "expected a matrix": (np.ones(32, np.float32), None, (16, 16)),
}


@pytest.mark.parametrize("message", BAD_PACKING)
def test_what_cannot_be_packed_is_refused(message):
    with pytest.raises(KernelError, match=message):
        from_dense(*BAD_PACKING[message])
