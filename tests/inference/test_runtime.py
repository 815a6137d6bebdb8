"""The compiled model: the training model's answers in every bucket, from any thread, with nothing compiled later."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.forward import Form, forward
from mlprune_jax.inference.plan import decide, layer_plans, realise
from mlprune_jax.inference.runtime import Served, compile_model
from pallas_kernels import to_dense
from tests.inference.conftest import CONFIG, batch, close, masked, plain_logits, random_params

SIZES = {"batch_sizes": (1, 4), "lengths": (8, 16)}
HEADS = {"classification": 3, "regression": 1, "span": 2}


def served(model, kind="classification"):
    return Served(model.config, model.params, model.masks, kind)


@pytest.fixture(scope="module")
def compiled(tile_model):
    return compile_model(served(tile_model), implementation="xla", **SIZES)


@pytest.mark.parametrize("implementation", [None, "reference", "dense", "xla"])
@pytest.mark.parametrize(("kind", "num_labels"), HEADS.items())
def test_answers_are_those_of_the_training_model(kind, num_labels, implementation):
    model, inputs = masked(kind, num_labels), batch()
    found = compile_model(served(model, kind), batch_sizes=[3], lengths=[12], implementation=implementation)
    wanted = plain_logits(CONFIG, model.params, kind, inputs)
    if kind == "span":  # what stands at padding is nobody's answer
        real = np.arange(12)[None] < inputs[1][:, None]
        close(found.logits(*inputs)[real], wanted[real])
    else:
        close(found.logits(*inputs), wanted)


def test_a_model_without_tiles():
    params, inputs = random_params(CONFIG, "classification", 3), batch()
    found = compile_model(Served(CONFIG, params, None, "classification"), batch_sizes=[4], lengths=[16])
    close(found.logits(*inputs), plain_logits(CONFIG, params, "classification", inputs))
    assert {decision.choice.implementation for decision in found.decisions(4, 16)} == {"dense"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(tile_model, dtype):
    inputs = batch()
    found = compile_model(served(tile_model), batch_sizes=[4], lengths=[16], dtype=dtype, implementation="xla")
    wanted = plain_logits(CONFIG, tile_model.params, "classification", inputs)
    # Each of some twenty products rounds its operands once.
    step = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(found.logits(*inputs), wanted, atol=20 * step * np.abs(wanted).max())


def test_an_implementation_without_blocks_to_run_is_refused():
    model = Served(CONFIG, random_params(CONFIG, "classification", 3), None, "classification")
    with pytest.raises(ConfigError, match="no block-sparse matrix"):
        compile_model(model, batch_sizes=[1], lengths=[8], implementation="xla")


@pytest.mark.parametrize(("rows", "length"), [(1, 8), (1, 3), (2, 8), (3, 11), (4, 16)])
def test_filling_up_a_bucket_changes_nothing(compiled, tile_model, rows, length):
    inputs = batch(rows, length)
    close(compiled.logits(*inputs), plain_logits(CONFIG, tile_model.params, "classification", inputs))


def test_nothing_is_compiled_after_construction(compiled):
    events = []
    listener = lambda name, *_, **__: events.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for rows, length in [(1, 5), (4, 16), (2, 9)]:
            compiled.logits(*batch(rows, length))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not [name for name in events if "compile" in name or "trace" in name]


def test_threads_get_their_own_answers_and_parameters_stay(compiled):
    inputs = [batch(rows, length) for rows in (1, 2, 4) for length in (4, 8, 13)] * 4
    alone = [compiled.logits(*each) for each in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: compiled.logits(*each), inputs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_decision_says_why(compiled):
    decisions = compiled.decisions(4, 16)
    assert [(d.layer, d.product) for d in decisions[:5]] == [
        (0, "qkv"),
        (0, "attention_output"),
        (0, "ffn"),
        (0, "ffn_output"),
        (1, "qkv"),
    ]
    assert all(d.choice.reason for d in decisions)
    assert {d.choice.implementation for d in decisions} == {"xla"}


def test_memory_is_told(compiled):
    small, large = compiled.memory(1, 8), compiled.memory(4, 16)
    assert small["parameters"] == large["parameters"] > 0
    assert 0 < small["activations"] < large["activations"]


def test_packed_products_are_not_computed_densely(tile_model):
    """No product of the forward has the whole of a packed matrix as an operand; run densely, they all have."""
    packed, config = assemble(tile_model.params, tile_model.masks, CONFIG, "float32")
    ids = jnp.ones((5, 12), jnp.int32)  # 60 tokens: no matrix has that size

    def operands(implementation):
        plans = layer_plans(decide(packed, 60, "float32", implementation=implementation))
        form = Form(config, "classification", "float32", plans, fused_attention=False)
        params = realise(packed, plans, lambda i, name: to_dense(getattr(packed.layers[i], name).weight))
        text = jax.jit(partial(forward, form)).lower(params, ids, ids[:, 0], ids).as_text()
        return {line.rsplit("tensor<", 2)[1].split(">")[0] for line in text.splitlines() if "dot_general" in line}

    shapes = {layer.qkv.weight.shape for layer in packed.layers}  # wider than any column of blocks
    whole = {f"{d_in}x{d_out}xf32" for d_in, d_out in shapes}
    assert whole <= operands("dense")
    assert not whole & operands("xla")


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ((np.ones((5, 8)), np.ones(5)), "no bucket takes 5 rows"),
        ((np.ones((1, 17)), np.ones(1)), "no bucket takes 1 rows of 17"),
        ((np.ones(8), np.ones(1)), "a batch needs"),
        ((np.ones((2, 8)), np.ones(3)), "a batch needs"),
        ((np.ones((1, 8)), np.zeros(1)), "lengths must lie in 1 .. 8"),
        ((np.ones((1, 8)), np.full(1, 9)), "lengths must lie in 1 .. 8"),
    ],
)
def test_batches_that_do_not_fit(compiled, inputs, told):
    with pytest.raises(DataError, match=told):
        compiled.logits(*inputs)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_sizes": []}, "at least 1"),
        ({"lengths": [0]}, "at least 1"),
        ({"lengths": [33]}, "above the model's 32 positions"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"implementation": "mosaic_gpu"}, "needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tile_model, options, told):
    with pytest.raises(ConfigError, match=told):
        compile_model(served(tile_model), **{"batch_sizes": [1], "lengths": [8], **options})
