"""The model itself: parity with torch's stored outputs, padding, heads, precision, dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.models.bert import Bert, Dropout, add_into, product
from mlprune_jax.models.pretrained import load_pretrained
from mlprune_jax.models.tasks import TaskModel, init_params

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
)
SHRUNK = (
    LayerShape(heads=(1, 2), attention_output=(0, 3, 9), ffn=tuple(range(10)), ffn_output=(1, 30)),
    LayerShape(heads=(0,), attention_output=tuple(range(5, 20)), ffn=tuple(range(7)), ffn_output=(0, 2, 4)),
)
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (2, 9)), jnp.int32)


def apply(model, params, ids=IDS, mask=None, **options):
    mask = jnp.ones_like(ids) if mask is None else mask
    return jax.jit(partial(model.apply, **options))({"params": params}, ids, mask, jnp.zeros_like(ids))


def at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_minilm_equals_torch(shared):
    stored = np.load(shared / "reference" / "minilm_torch.npz")
    loaded = load_pretrained(shared / "models" / "minilm-l6-h384", num_labels=2, kind="classification")
    inputs = [jnp.asarray(stored[k], jnp.int32) for k in ("input_ids", "attention_mask", "token_type_ids")]
    with jax.default_matmul_precision("highest"):
        out = Bert(loaded.config).apply({"params": loaded.params["bert"]}, *inputs, hidden=True)
    wanted = {"last_hidden_state": out.last, "pooler_output": out.pooled, "layer3": out.hidden_states[3]}
    for name, value in wanted.items():
        assert np.abs(np.asarray(value) - stored[name]).max() <= 1e-4


def test_padding_changes_nothing():
    model = TaskModel(CONFIG, "classification", 3)
    params = init_params(model, 0)
    padded = jnp.pad(IDS, ((0, 0), (0, 5)))
    mask = jnp.pad(jnp.ones_like(IDS), ((0, 0), (0, 5)))
    np.testing.assert_allclose(apply(model, params, padded, mask).logits, apply(model, params).logits, atol=1e-6)


def one_layer(**changes):
    return CONFIG.model_copy(update={"num_hidden_layers": 1, **changes})


def random_params(tiny, config, kind):
    """Of a size by which attention chooses; biases and norms are random too."""
    return jax.tree.map(lambda x: 0.5 * x, tiny.make_params(config, kind))


def normalised(x, norm, epsilon):
    spread = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return (x - x.mean(-1, keepdims=True)) / spread * norm["scale"] + norm["bias"]


def test_every_norm_has_the_configs_epsilon(tiny):
    """The embeddings' and both of a layer, into which nothing else is added here."""
    config = one_layer(layer_norm_eps=0.1)
    params = random_params(tiny, config, "span")["bert"]
    embeddings, layer = params["embeddings"], params["encoder"]["layer_0"]
    for half in layer.values():
        half["output"] = jax.tree.map(np.zeros_like, half["output"])
    word, position, token_type = (embeddings[name]["embedding"] for name in ("word", "position", "token_type"))
    first = normalised(word[IDS] + position[: IDS.shape[1]] + token_type[0], embeddings["norm"], 0.1)
    second = normalised(normalised(first, layer["attention"]["norm"], 0.1), layer["ffn"]["norm"], 0.1)
    found = apply(Bert(config, pool=False), params, hidden=True).hidden_states
    np.testing.assert_allclose(found, [first, second], atol=1e-5)


@pytest.mark.parametrize("layers", [(), SHRUNK[:1]], ids=["dense", "shrunk"])
def test_attention_that_is_told_is_the_one_that_answers(tiny, layers):
    """Found by review: without the reference arrays, nothing compared training's attention with evaluation's."""
    model = TaskModel(one_layer(layers=layers), "span", 2)
    params, mask, types = random_params(tiny, model.config, "span"), np.ones_like(IDS), np.zeros_like(IDS)
    mask[0, 5:] = 0
    told = jax.jit(partial(model.apply, attention=True))
    with jax.default_matmul_precision("highest"):
        found = told({"params": params}, IDS, mask, types)
        other = told({"params": params}, IDS.at[:, 5:].set(7), mask, types)
        wanted = apply(model, params, mask=mask)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.logits[0, :5], other.logits[0, :5])  # whatever stands at padding
    assert float(jnp.abs(found.logits[1, :5] - other.logits[1, :5]).max()) > 0.01
    [probabilities] = found.encoded.attentions
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert not probabilities[0, ..., 5:].any()


@pytest.mark.parametrize(
    ("kind", "labels", "shape"), [("classification", 3, (2, 3)), ("regression", 1, (2, 1)), ("span", 2, (2, 9, 2))]
)
def test_heads(kind, labels, shape):
    model = TaskModel(CONFIG, kind, labels)
    out = apply(model, init_params(model, 0), hidden=True, attention=True)
    assert out.logits.shape == shape
    assert len(out.encoded.hidden_states) == 3
    assert [a.shape for a in out.encoded.attentions] == [(2, 4, 9, 9)] * 2
    assert (out.encoded.pooled is None) == (kind == "span")


@pytest.mark.parametrize("layers", [(), SHRUNK])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_last_layer_for_the_first_token_alone(layers, rematerialize):
    """What a pooler does not read is not computed, and neither the logits nor any gradient notice."""
    config = CONFIG.model_copy(update={"layers": layers})
    model = TaskModel(config, "classification", 3, rematerialize=rematerialize)
    noise = iter(jax.random.split(jax.random.key(1), 100))  # so that attention chooses and has gradients
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), init_params(model, 0))
    mask = jnp.ones_like(IDS).at[0, 5:].set(0)

    @partial(jax.jit, static_argnames="hidden")
    @partial(jax.value_and_grad, has_aux=True)
    def gradients(params, hidden):
        out = apply(model, params, mask=mask, hidden=hidden)
        return jnp.square(out.logits).sum(), out

    with jax.default_matmul_precision("highest"):
        (_, alone), found = gradients(params, hidden=False)
        (_, whole), wanted = gradients(params, hidden=True)
    assert alone.encoded.last.shape == (2, 1, 32)
    assert whole.encoded.last.shape == (2, 9, 32)
    np.testing.assert_allclose(alone.encoded.last[:, 0], whole.encoded.last[:, 0], atol=1e-5)
    np.testing.assert_allclose(alone.logits, whole.logits, rtol=1e-5, atol=1e-5)
    for path, value in jax.tree_util.tree_leaves_with_path(wanted):
        largest = float(jnp.abs(value).max())
        if path[-1].key == "bias" and path[-2].key == "key":  # softmax does not see it: what is left is rounding
            continue
        assert largest > 1e-3, path
        np.testing.assert_allclose(at(found, path), value, atol=1e-5 * largest, err_msg=str(path))


def test_other_tokens_cannot_be_asked_for_beside_the_first_alone():
    params = init_params(TaskModel(CONFIG, "classification", 3), 0)["bert"]
    with pytest.raises(ValueError, match="first_only leaves nothing"):
        apply(Bert(CONFIG), params, first_only=True, hidden=True)


def test_spans_read_every_token():
    model = TaskModel(CONFIG, "span", 2)
    assert apply(model, init_params(model, 0)).encoded.last.shape == (2, 9, 32)


def test_bfloat16_stays_near_float32():
    params = init_params(TaskModel(CONFIG, "classification", 3), 0)
    full = apply(TaskModel(CONFIG, "classification", 3), params, hidden=True)
    half = apply(TaskModel(CONFIG, "classification", 3, jnp.bfloat16), params, hidden=True)
    assert half.encoded.last.dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32
    # Hidden states are normalised (size 1), bfloat16 has 8 bits: a few roundings of 2**-8.
    np.testing.assert_allclose(half.encoded.last.astype(jnp.float32), full.encoded.last, atol=16 * 2**-8)


def test_product_gradients_are_those_of_matmul():
    x, w = jax.random.normal(jax.random.key(0), (3, 5, 8)), jax.random.normal(jax.random.key(1), (8, 4))
    ours = jax.grad(lambda x, w: jnp.sin(product(x, w, jnp.float32)).sum(), (0, 1))(x, w)
    plain = jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1))(x, w)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean_and_drops_its_rate():
    x = jnp.ones((64, 103))
    y = Dropout(0.1).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert float((y == 0).mean()) == pytest.approx(26 / 256, abs=0.02)
    assert float(y.max()) == pytest.approx(256 / 230)
    assert (Dropout(0.1).apply({}, x, train=False) == x).all()


# The words drawn, of four keep decisions each: embeddings, both updates of a layer, pooled state; probabilities.
DRAWN = {
    "hidden_dropout_prob": [(2, 9, 8), (2, 9, 8), (2, 9, 8), (2, 8)],
    "attention_probs_dropout_prob": [(2, 4, 9, 3)],
}


@pytest.mark.parametrize(("rate", "shapes"), DRAWN.items(), ids=DRAWN)
def test_what_training_drops(tiny, rate, shapes, monkeypatch):
    """Each draw that drops all changes the answer."""
    config = one_layer(**{**dict.fromkeys(DRAWN, 0.0), rate: 0.5})
    model, drawn = TaskModel(config, "classification", 3), []
    params = random_params(tiny, config, "classification")

    @jax.jit
    def logits(dropping):
        def bits(key, shape, dtype):
            drawn.append(shape)
            return jnp.where(dropping == len(drawn), jnp.zeros(shape, dtype), jnp.full(shape, 2**32 - 1, dtype))

        monkeypatch.setattr(jax.random, "bits", bits)
        options = {"train": True, "hidden": True, "rngs": {"dropout": jax.random.key(0)}}  # hidden: of every token
        return model.apply({"params": params}, IDS, jnp.ones_like(IDS), jnp.zeros_like(IDS), **options).logits

    kept = logits(0)
    assert drawn == shapes
    for place in range(1, len(shapes) + 1):
        assert float(jnp.abs(logits(place) - kept).max()) > 0.1, place


def test_erf_and_tanh_gelu_differ_slightly():
    params = init_params(TaskModel(CONFIG, "classification", 3), 0)
    erf = apply(TaskModel(CONFIG, "classification", 3), params, hidden=True).encoded.last
    tanh = apply(
        TaskModel(CONFIG.model_copy(update={"hidden_act": "gelu_new"}), "classification", 3), params, hidden=True
    ).encoded.last
    assert 0 < float(jnp.abs(erf - tanh).max()) < 1e-2


def test_too_many_tokens_are_refused():
    model = TaskModel(CONFIG, "classification", 3)
    with pytest.raises(ValueError, match="17 tokens for 16 position"):
        apply(model, init_params(model, 0), jnp.ones((1, 17), jnp.int32))


def test_rows_are_added_where_they_belong_and_so_are_their_gradients():
    kept = (0, 3, 4, 7)
    residual, update = jax.random.normal(jax.random.key(0), (2, 5, 8)), jax.random.normal(jax.random.key(1), (2, 5, 4))

    def scattered(residual, update):
        return residual.at[..., jnp.asarray(kept)].add(update)

    def value(add):
        return lambda residual, update: jnp.sin(add(residual, update)).sum()

    np.testing.assert_array_equal(add_into(residual, update, kept), scattered(residual, update))
    ours = jax.grad(value(lambda r, u: add_into(r, u, kept)), (0, 1))(residual, update)
    plain = jax.grad(value(scattered), (0, 1))(residual, update)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(one, other)
