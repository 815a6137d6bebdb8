"""Attention without probabilities, beside the textbook's, whole and one example after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.models import attention
from mlprune_jax.models.attention import attend

BATCH, HEADS, ASKED, TOKENS, FEATURES = 3, 2, 4, 5, 8
REAL = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]) > 0


@pytest.fixture(params=["whole", "one by one"])
def loops(request, monkeypatch):
    limit = 2**25 if request.param == "whole" else 4 * BATCH * HEADS * ASKED * TOKENS - 1
    monkeypatch.setattr(attention, "LARGEST_SCORES", limit)
    monkeypatch.setattr(attention, "FUSED_TOKENS", TOKENS - 1)
    monkeypatch.setattr(attention, "_one_by_one", lambda: True)
    return request.param != "whole"


def states(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (ASKED, TOKENS, TOKENS)
    return [jax.random.normal(k, (BATCH, HEADS, n, FEATURES), dtype) for k, n in zip(keys, sizes, strict=True)]


def textbook(query, key, value):
    scores = np.einsum("bhqk,bhlk->bhql", query, key) / np.sqrt(FEATURES)
    scores = np.where(np.asarray(REAL)[:, None, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhql,bhlk->bhqk", weights / weights.sum(-1, keepdims=True), value)


def test_it_is_the_textbooks(loops):
    found = jax.jit(lambda *arrays: attend(*arrays))(*states(), REAL)  # a function of its own: jit keeps what it traced
    np.testing.assert_allclose(found, textbook(*map(np.asarray, states())), atol=1e-5)
    assert found.dtype == jnp.float32


def test_large_scores_are_computed_one_example_at_a_time(loops):
    assert ("scan" in str(jax.make_jaxpr(lambda *arrays: attend(*arrays))(*states(), REAL))) == loops


def test_what_is_fused_is_never_looped_over(loops, monkeypatch):
    monkeypatch.setattr(attention, "FUSED_TOKENS", TOKENS)
    assert "scan" not in str(jax.make_jaxpr(lambda *arrays: attend(*arrays))(*states(), REAL))


def test_gradients_are_the_same(monkeypatch):
    def loss(arrays):
        return jnp.sum(jnp.sin(attend(*arrays, REAL)))

    whole = jax.grad(loss)(states())
    monkeypatch.setattr(attention, "LARGEST_SCORES", 0)
    monkeypatch.setattr(attention, "FUSED_TOKENS", 0)
    monkeypatch.setattr(attention, "_one_by_one", lambda: True)
    for found, wanted in zip(jax.grad(loss)(states()), whole, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("sizes", ["3, length", "batch, 5"])
def test_sizes_may_be_symbols(loops, sizes):
    batch, length = jax.export.symbolic_shape(sizes)
    state = jax.ShapeDtypeStruct((batch, HEADS, length, FEATURES), jnp.float32)
    real = jax.ShapeDtypeStruct((batch, length), bool)
    exported = jax.export.export(jax.jit(lambda *arrays: attend(*arrays)))(state, state, state, real)
    _, key, value = states()
    wanted = textbook(*map(np.asarray, (key, key, value)))
    np.testing.assert_allclose(exported.call(key, key, value, REAL), wanted, atol=1e-5)


def test_half_precision_sums_in_float32(loops):
    found = attend(*states(jnp.bfloat16), REAL)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, textbook(*(np.asarray(s, np.float32) for s in states(jnp.bfloat16))), atol=2e-2)
