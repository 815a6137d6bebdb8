"""The compiled model: the training model's answers in every bucket, from any thread, with nothing compiled later."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.inference import calls, runtime
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.forward import Form, LayerPlan, forward
from mlprune_jax.inference.plan import PRODUCTS, decide, layer_plans, prepare, realise
from mlprune_jax.inference.runtime import Served, check_sizes, compile_model
from pallas_kernels.block_sparse_matmul.costs import CostTable, Entry
from pallas_kernels.device import hardware_name
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


@pytest.mark.parametrize("change", [{"layer_norm_eps": 0.1}, {"hidden_act": "gelu_new"}], ids=str)
def test_the_configs_epsilon_and_gelu(tile_model, change):
    config, inputs = CONFIG.model_copy(update=change), batch()
    found = compile_model(served(tile_model._replace(config=config)), batch_sizes=[3], lengths=[12])
    wanted, usual = (plain_logits(c, tile_model.params, "classification", inputs) for c in (config, CONFIG))
    close(found.logits(*inputs), wanted)
    with pytest.raises(AssertionError):
        close(usual, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(tile_model, dtype):
    inputs = batch()
    found = compile_model(served(tile_model), batch_sizes=[4], lengths=[16], dtype=dtype, implementation="xla")
    wanted = plain_logits(CONFIG, tile_model.params, "classification", inputs)
    # Each of some twenty products rounds its operands once; no finer dtype is as far off as half a step.
    step = {"bfloat16": 2**-8, "float16": 2**-11}[dtype] * np.abs(wanted).max()
    assert step / 2 <= np.abs(found.logits(*inputs) - wanted).max() <= 20 * step


@pytest.mark.parametrize("implementation", ["dense", "reference", "xla"])
def test_bfloat16_between_kernels_stays_near_float32(tile_model, implementation):
    """And is not float32 in disguise, nor does it reach the logits' own rounding."""
    packed, config = assemble(tile_model.params, tile_model.masks, CONFIG, "bfloat16")
    ids, lengths = batch()[:2]
    inputs = tuple(jnp.asarray(array) for array in (ids, lengths, np.zeros_like(ids)))

    def logits(activations):
        plans = layer_plans(decide(packed, *ids.shape, "bfloat16", implementation=implementation))
        params = realise(packed, plans, lambda i, name, way: prepare(getattr(packed.layers[i], name).weight, way))
        form = Form(config, "classification", "bfloat16", plans, fused_attention=False, activations=activations)
        return np.asarray(jax.jit(partial(forward, form))(params, *inputs))

    wanted, found = logits("float32"), logits("bfloat16")
    assert found.dtype == np.float32
    assert np.any(found != found.astype(jnp.bfloat16))
    # Some 17 arrays on the way are rounded by half a step at most, up and down: two steps in all, as measured.
    assert 0 < np.abs(found - wanted).max() <= 4 * 2**-8 * np.abs(wanted).max()


def test_the_residual_stream_is_of_the_activations_dtype(tile_model):
    """Both sums of each layer, into which what its products give is added."""
    packed, config = assemble(tile_model.params, None, CONFIG, "bfloat16")
    spans = packed._replace(pooler=None)
    plans = layer_plans(decide(spans, 3, 12, "bfloat16"))
    ids = jnp.ones((3, 12), jnp.int32)

    def sums(activations):
        form = Form(config, "span", "bfloat16", plans, fused_attention=False, activations=activations)
        text = jax.jit(partial(forward, form)).lower(spans, ids, ids[:, 0], ids).as_text()
        rounded = f"tensor<3x12x{config.hidden_size}xbf16>"
        return sum("stablehlo.add" in line and rounded in line for line in text.splitlines())

    assert sums("float32") == 0
    assert sums("bfloat16") == 2 * config.num_hidden_layers


@pytest.mark.parametrize(("device", "dtype"), [("gpu", "float16"), ("gpu", "float32"), ("cpu", "bfloat16")])
def test_float32_between_kernels_elsewhere(device, dtype, monkeypatch):
    monkeypatch.setattr(runtime, "platform", lambda: device)
    assert runtime._activations(dtype) == "float32"


@pytest.mark.parametrize(
    ("capability", "dtype", "heads", "fused"),
    [
        ((9, 0), "bfloat16", 4, True),
        ((8, 0), "float16", 4, True),
        ((8, 0), "float32", 4, False),
        ((7, 5), "bfloat16", 4, False),  # a T4
        (None, "bfloat16", 4, False),  # AMD's, and a CPU
        ((9, 0), "bfloat16", 16, False),  # heads of 4
    ],
)
def test_fused_attention_is_taken_where_cudnn_has_it(monkeypatch, capability, dtype, heads, fused):
    """Found by review: the GPU's generation was not asked for, and a T4 could compile no model."""
    monkeypatch.setattr(runtime, "compute_capability", lambda: capability)
    config = CONFIG.model_copy(update={"num_attention_heads": heads})
    assert runtime._has_fused_attention(config, dtype) == fused


def test_a_gpu_keeps_bfloat16_between_a_bfloat16_models_kernels(tile_model, monkeypatch):
    inputs = batch()

    def logits():
        sizes = {"batch_sizes": [4], "lengths": [16]}
        return compile_model(served(tile_model), **sizes, dtype="bfloat16", implementation="xla").logits(*inputs)

    on_cpu = logits()
    monkeypatch.setattr(runtime, "platform", lambda: "gpu")
    monkeypatch.setattr(runtime, "_has_fused_attention", lambda config, dtype: False)
    assert np.any(logits() != on_cpu)


def test_an_implementation_without_blocks_to_run_is_refused():
    model = Served(CONFIG, random_params(CONFIG, "classification", 3), None, "classification")
    with pytest.raises(ConfigError, match="no block-sparse matrix"):
        compile_model(model, batch_sizes=[1], lengths=[8], implementation="xla")


@pytest.mark.parametrize(("rows", "length"), [(1, 8), (1, 3), (2, 8), (3, 11), (4, 16)])
def test_filling_up_a_bucket_changes_nothing(compiled, tile_model, rows, length):
    inputs = batch(rows, length)
    close(compiled.logits(*inputs), plain_logits(CONFIG, tile_model.params, "classification", inputs))


def test_a_batch_runs_a_few_rows_at_a_time(tile_model, monkeypatch):
    """Which is seen in the answers of no row."""
    monkeypatch.setattr(calls, "TOKENS", 40)
    compiled = compile_model(served(tile_model), batch_sizes=[4], lengths=[16], implementation="xla")
    assert compiled._executables[4, 16].rows == 2
    inputs = batch(3, 16)
    close(compiled.logits(*inputs), plain_logits(CONFIG, tile_model.params, "classification", inputs))


def test_nothing_is_compiled_after_construction(tile_model):
    compiled = compile_model(served(tile_model), implementation="xla", **SIZES)  # its own: no call came before
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
    before = jax.device_get([e.params for e in compiled._executables.values()])
    alone = [compiled.logits(*each) for each in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: compiled.logits(*each), inputs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    after = [e.params for e in compiled._executables.values()]
    jax.tree.map(np.testing.assert_array_equal, before, after)


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


def test_only_the_first_token_leaves_the_last_layer(compiled):
    """A pooler reads no other: the products behind its attention have one row of each sequence."""
    tokens = {(d.layer, d.product): d.tokens for d in compiled.decisions(4, 16)}
    rows = tokens[1, "ffn"]
    assert tokens[1, "qkv"] == tokens[0, "ffn_output"] == rows * 16
    assert tokens[1, "attention_output"] == tokens[1, "ffn_output"] == rows <= 4


def test_the_last_layer_computes_the_first_token_alone():
    """Of 5 rows of 12 tokens, queries, keys and values see all; what comes after attention sees 5 tokens."""
    packed, config = assemble(masked().params, None, CONFIG, "float32")
    packed, config = only_second_layer(packed, config)
    ids = jnp.ones((5, 12), jnp.int32)

    def products(kind, params):
        plans = layer_plans(decide(params, 5, 12, "float32"))
        form = Form(config, kind, "float32", plans, fused_attention=False, activations="float32")
        traced = jax.make_jaxpr(partial(forward, form))(params, ids, ids[:, 0], ids)
        found = [eqn.invars[0].aval.shape for eqn in traced.eqns if eqn.primitive.name == "dot_general"]
        return [shape[:-1] for shape in found if len(shape) < 4]  # attention's own two have four axes

    # Q with K and V, O, two of FFN; pooler and head behind them.
    assert products("classification", packed) == [(5, 12)] + [(5, 1)] * 3 + [(5,)] * 2
    assert products("span", packed._replace(pooler=None)) == [(5, 12)] * 5


def test_memory_is_told(compiled):
    small, large = compiled.memory(1, 8), compiled.memory(4, 16)
    assert small["parameters"] == large["parameters"] > 0
    assert 0 < small["activations"] < large["activations"]


def test_packed_products_are_not_computed_densely():
    """No product of the forward has the whole of a packed matrix as an operand; run densely, they all have."""
    # Layer 1 of these has four matrices of different shapes, none of them one part of an unrolled matrix or the pooler.
    model = masked()
    packed, config = assemble(model.params, model.masks, CONFIG, "float32")
    packed, config = only_second_layer(packed, config)
    ids = jnp.ones((5, 12), jnp.int32)  # 60 tokens: no matrix has that size

    def operands(implementation):
        plans = layer_plans(decide(packed, 5, 12, "float32", implementation=implementation))
        form = Form(config, "classification", "float32", plans, fused_attention=False, activations="float32")
        params = realise(packed, plans, lambda i, name, way: prepare(getattr(packed.layers[i], name).weight, way))
        text = jax.jit(partial(forward, form)).lower(params, ids, ids[:, 0], ids).as_text()
        return {line.rsplit("tensor<", 2)[1].split(">")[0] for line in text.splitlines() if "dot_general" in line}

    shapes = {getattr(packed.layers[0], name).weight.shape for name in LayerPlan._fields}
    whole = {f"{d_in}x{d_out}xf32" for d_in, d_out in shapes if d_out > 32}  # parts by column are 32 wide
    assert len(whole) >= 2
    assert whole <= operands("dense")
    assert not whole & operands("xla")


def only_second_layer(packed, config):
    alone = config.model_copy(update={"layers": config.layers[1:], "num_hidden_layers": 1})
    return packed._replace(layers=packed.layers[1:]), alone


def test_a_plan_may_run_some_products_packed_and_some_dense(tile_model):
    """Measured costs by which only the widest matrices are worth packing, in one bucket and not in the other."""
    entries = tuple(
        Entry("float32", shape, (16, 16), density, tokens, {"dense": 1.0, "xla": xla})
        for shape, xla in (((64, 192), 0.5), ((32, 32), 2.0))
        for density in (0.1, 0.9)
        for tokens in (32, 64)
    )
    table = CostTable(hardware_name(), {}, entries)
    compiled = compile_model(served(tile_model), batch_sizes=[1, 4], lengths=[16], table=table)
    inputs = batch(4, 16)
    close(compiled.logits(*inputs), plain_logits(CONFIG, tile_model.params, "classification", inputs))
    other = replace(table, hardware="elsewhere")
    with pytest.raises(ConfigError, match=r"the cost table is of 'elsewhere', and this device is"):
        compile_model(served(tile_model), batch_sizes=[1], lengths=[16], table=other)
    assert {d.choice.implementation for d in compiled.decisions(4, 16)} == {"xla", "dense"}
    assert {d.choice.implementation for d in compiled.decisions(1, 16)} >= {"dense"}
    assert all("measured" in d.choice.reason for d in compiled.decisions(4, 16) if d.choice.implementation == "xla")


def test_the_ffn_is_judged_with_its_gelu(tile_model):
    """The other products without, though a matrix of its shape gains where a GELU follows."""
    entries = tuple(
        Entry("float32", (32, 64), (16, 16), density, 64, {"dense": 1.0, "xla": xla}, 1, activation)
        for density in (0.1, 0.9)
        for xla, activation in ((0.5, "gelu"), (2.0, None))
    )
    table = CostTable(hardware_name(), {}, entries)
    decisions = compile_model(served(tile_model), batch_sizes=[4], lengths=[16], table=table).decisions(4, 16)
    picked = {product: {d.choice.implementation for d in decisions if d.product == product} for product in PRODUCTS}
    assert "xla" in picked.pop("ffn")
    assert set().union(*picked.values()) == {"dense"}


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ((np.ones((5, 8)), np.ones(5)), "no bucket takes 5 rows"),
        ((np.ones((1, 17)), np.ones(1)), "no bucket takes 1 rows of 17"),
        ((np.ones(8), np.ones(1)), "a batch needs"),
        ((np.ones((2, 8)), np.ones(3)), "a batch needs"),
        ((np.ones((1, 8)), np.zeros(1)), "lengths must lie in 1 .. 8"),
        ((np.ones((1, 8)), np.full(1, 9)), "lengths must lie in 1 .. 8"),
        ((np.full((1, 8), 40), np.ones(1)), "input_ids must lie in 0 .. 39"),
        ((np.full((1, 8), -1), np.ones(1)), "input_ids must lie in 0 .. 39"),
        ((np.ones((1, 8)), np.ones(1), np.full((1, 8), 2)), "token_type_ids must lie in 0 .. 1"),
    ],
)
def test_batches_that_do_not_fit(compiled, inputs, told):
    with pytest.raises(DataError, match=told):
        compiled.logits(*(array.astype(int) for array in inputs))


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (np.full((1, 8), 2**32 + 5), "input_ids must lie in 0 .. 39"),
        (np.full((1, 8), 1.9), "input_ids must be integers"),
        ([[1, 2], [3]], "input_ids is no array"),
    ],
)
def test_numbers_are_not_cut_down_to_some_token(compiled, ids, told):
    function = getattr(type(compiled).logits, "__wrapped__", type(compiled).logits)  # without the tests' type checks
    with pytest.raises(DataError, match=told):
        function(compiled, ids, np.ones(1, int))


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


@pytest.mark.parametrize("sizes", [8, [1.5], "8", None, [[1, 8]]])
def test_sizes_that_are_none(sizes):
    with pytest.raises(ConfigError, match="lengths must be whole numbers of at least 1"):
        check_sizes("lengths", sizes)
    assert check_sizes("lengths", np.array([8, 16])) == [8, 16]
