"""The laws of masks, counts and removal: masked = shrunk, counts exact, the cut maximal."""

from dataclasses import replace
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pruning.binarize import binarize, binarize_softly, kept_units, positive_units, top_k_mask
from mlprune_jax.pruning.density import (
    BlockCost,
    HeadRowCost,
    counted_budget,
    counted_logits,
    cut_scores,
    cut_to,
    dense_size,
    density,
    encoder_size,
    smallest_density,
    threshold_counts,
)
from mlprune_jax.pruning.expand import expand
from mlprune_jax.pruning.granularity import HEAD, ROW, Granularity, block, find_groups
from mlprune_jax.pruning.masks import (
    apply_mask,
    apply_masks,
    as_bool,
    compute_masks,
    init_scores,
    init_thresholds,
    magnitudes,
    masks_keeping,
    spread,
)
from mlprune_jax.pruning.shrink import shrink
from tests.masks import count_kept

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
)

HEAD_ROW = find_groups(CONFIG, (HEAD, ROW))
FULL = {g.name: g.size for g in HEAD_ROW}
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (2, 9)), jnp.int32)
ATTENTION = jnp.ones_like(IDS).at[1, 6:].set(0)


@pytest.fixture(scope="module")
def params():
    fresh = init_params(TaskModel(CONFIG, "classification", 3), 0)
    # Fresh biases and norms are trivial; random ones show a forgotten cut.
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def scores():
    return init_scores(HEAD_ROW, "uniform", seed=3, scale=1.0)


def logits(config, params):
    model = TaskModel(config, "classification", 3)
    return jax.jit(model.apply)({"params": params}, IDS, ATTENTION, jnp.zeros_like(IDS)).logits


CASES = {
    "everything kept": FULL,
    "one unit of each": dict.fromkeys(FULL, 1),
    "one head left in a layer": {**FULL, "layer_0/attention": 1},
    "rows of O and FC2": {**FULL, "layer_0/attention_output": 7, "layer_1/ffn_output": 1},
    "some of everything": {name: max(1, size * 2 // 3) for name, size in FULL.items()},
}


@pytest.mark.parametrize("kept", CASES.values(), ids=CASES.keys())
def test_masked_equals_shrunk(params, scores, kept):
    masks = masks_keeping(HEAD_ROW, scores, kept)
    smaller, config = shrink(params, masks, CONFIG)
    np.testing.assert_allclose(logits(config, smaller), logits(CONFIG, apply_masks(params, masks)), atol=1e-5, rtol=0)
    assert encoder_size(config) == HeadRowCost(CONFIG, HEAD_ROW).count(kept)
    assert encoder_size(config) == sum(x.size for x in jax.tree.leaves(smaller["bert"]["encoder"]))


@pytest.mark.parametrize("kept", CASES.values(), ids=CASES.keys())
def test_expanded_equals_shrunk_and_shrinks_back(params, scores, kept):
    masks = masks_keeping(HEAD_ROW, scores, kept)
    smaller, config = shrink(params, masks, CONFIG)
    large, dense = expand(smaller, config)
    assert dense == CONFIG
    np.testing.assert_allclose(logits(CONFIG, large), logits(config, smaller), atol=1e-5, rtol=0)
    again, shapes = shrink(large, masks, CONFIG)
    assert shapes == config
    jax.tree.map(np.testing.assert_array_equal, again, smaller)


def test_shrinking_twice_keeps_ids_of_the_dense_model(params, scores):
    first = masks_keeping(HEAD_ROW, scores, {**FULL, "layer_0/ffn": 20})
    smaller, config = shrink(params, first, CONFIG)
    groups = find_groups(config, (HEAD, ROW))
    again = masks_keeping(groups, init_scores(groups), {g.name: g.size for g in groups} | {"layer_0/ffn": 5})
    _, twice = shrink(smaller, again, config)
    assert twice.layers[0].ffn == config.layers[0].ffn[:5]


def test_shrink_refuses_masks_that_do_not_fit(params):
    masks = masks_keeping(HEAD_ROW, init_scores(HEAD_ROW), FULL)
    masks["bert"]["encoder"]["layer_1"]["ffn"]["output"]["bias"] = np.zeros(32, bool)
    with pytest.raises(ConfigError, match="layer 1: the mask of ffn_output must be there, and be the same, for all"):
        shrink(params, masks, CONFIG)
    masks["bert"]["encoder"]["layer_1"]["ffn"]["output"]["kernel"] = np.zeros(32, bool)
    with pytest.raises(ConfigError, match="layer 1: the mask of ffn_output needs 32 entries, one of them True"):
        shrink(params, masks, CONFIG)


def _lacks_a_bias(encoder):
    del encoder["layer_0"]["ffn"]["output"]["bias"]


def _keys_of_other_heads(encoder):
    encoder["layer_0"]["attention"]["key"]["kernel"] = np.array([True, False, True, True])


def _a_layer_too_many(encoder):
    encoder["layer_7"] = encoder["layer_1"]


def _tiles(encoder):
    encoder["layer_0"]["attention"]["output"]["kernel"] = np.ones((4, 4), bool)


@pytest.mark.parametrize("spoil", [_lacks_a_bias, _keys_of_other_heads, _a_layer_too_many, _tiles])
def test_shrink_passes_over_no_mask(params, spoil):
    """Found by review: what it had no use for changed nothing, and nobody was told."""
    masks = masks_keeping(HEAD_ROW, init_scores(HEAD_ROW), {**FULL, "layer_0/ffn_output": 9})
    spoil(masks["bert"]["encoder"])
    with pytest.raises(ConfigError, match=r"must be there, and be the same|is cut by the mask of bert/encoder/layer_7"):
        shrink(params, masks, CONFIG)


def test_tile_masks_alone_are_nothing_to_shrink_by(params):
    groups = find_groups(CONFIG, (block((8, 8)),))
    masks = masks_keeping(groups, init_scores(groups), {g.name: 1 for g in groups})
    with pytest.raises(ConfigError, match="must be there, and be the same"):
        shrink(params, masks, CONFIG)


def test_groups_of_the_same_parameter_are_refused():
    with pytest.raises(ConfigError, match="two groups cut bert/encoder/layer_0/attention/query/kernel"):
        find_groups(CONFIG, (HEAD, block((8, 8))))


def test_what_is_cut_together_is_alike():
    odd = Granularity("odd", {"odd": ("attention/output", "ffn/intermediate")}, (1,), cuts_bias=True)
    with pytest.raises(ConfigError, match="odd cuts matrices together whose units lie over other sizes"):
        find_groups(CONFIG, (odd,))
    with pytest.raises(ConfigError, match=r"odd cuts unknown matrices \['ffn/middle'\]"):
        find_groups(CONFIG, (replace(odd, coupled={"odd": ("ffn/middle",)}),))


def test_an_unknown_init_of_scores_is_refused():
    with pytest.raises(ConfigError, match="no init 'magnitude' of scores: there are constant, uniform"):
        unwrap(init_scores)(HEAD_ROW, "magnitude")  # as where no types are checked


def test_units_without_a_price_are_refused():
    units = Granularity("unit", {"units": ("ffn/intermediate",)}, (1,), cuts_bias=True)
    with pytest.raises(ConfigError, match="no price for layer_0/units, layer_1/units"):
        HeadRowCost(CONFIG, find_groups(CONFIG, (units,)))
    with pytest.raises(ConfigError, match="no price for layer_0/attention/key, "):
        HeadRowCost(CONFIG, find_groups(CONFIG, (block((8, 8)),)))
    with pytest.raises(ConfigError, match=r"no price for layer_0/attention, .*no tiles"):
        BlockCost(CONFIG, HEAD_ROW)


@given(st.integers(1, 40), st.floats(-12, 12), st.integers(0, 3), st.booleans())
@settings(max_examples=40)
def test_top_k_keeps_the_highest_and_the_lower_index(n, threshold, seed, ties):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, n).astype(np.float32) if ties else rng.normal(size=n).astype(np.float32)
    kept = int(kept_units(jnp.float32(threshold), n))
    mask = np.asarray(top_k_mask(jnp.asarray(values), jnp.int32(kept)))
    order = sorted(range(n), key=lambda i: (-values[i], i))
    assert 1 <= kept <= n
    assert set(np.flatnonzero(mask)) == set(order[:kept])


def test_equal_tile_scores_fall_from_the_last_output_first():
    mask = top_k_mask(jnp.zeros((3, 2)), jnp.int32(4))
    np.testing.assert_array_equal(mask, [[True, True], [True, False], [True, False]])


def test_binarizer_gradients_pass_straight_through():
    upstream = jnp.asarray([0.5, -2.0, 3.0, 1.0])
    values = jnp.asarray([0.1, 0.4, 0.3, 0.2])
    for temperature in (1.0, 8.0):
        mask, pullback = jax.vjp(lambda s, t, T=temperature: binarize(s, t, T), values, jnp.float32(0.0))
        np.testing.assert_array_equal(mask, [0, 1, 1, 0])
        d_scores, d_threshold = pullback(upstream)
        np.testing.assert_array_equal(d_scores, upstream)
        assert d_threshold == 1.0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(400,), (25, 16)])
def test_the_boundary_gradient_is_the_loss_of_one_unit_more(shape, temperature):
    """Against differences: the loss, linear in the mask, with 10 units more and fewer.

    Units are whole, so a difference over 20 of them may be one over 19 or 21: 5 %, and as much for the bend of sigmoid.
    """
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.permutation(400).reshape(shape), jnp.float32)
    worth = jnp.asarray(np.sin(np.asarray(values) / 60) + 0.2, jnp.float32)  # changes slowly from rank to rank

    def loss(threshold):
        return jnp.sum(worth * binarize(values, threshold, temperature, "boundary"))

    for threshold in (-1.3, 0.4):
        fraction = 1 / (1 + np.exp(-threshold / temperature))
        step = 10 / (400 * fraction * (1 - fraction) / temperature)  # in logits
        difference = (loss(jnp.float32(threshold + step)) - loss(jnp.float32(threshold - step))) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(jnp.float32(threshold)), difference, rtol=0.1)


def test_soft_masks_keep_what_scores_above_zero():
    for values, mask in (([2.0, -1.0, 0.5], [1, 0, 1]), ([-3.0, -1.0, -1.0], [0, 1, 0]), ([1.0, 2.0, 3.0], [1, 1, 1])):
        found, pullback = jax.vjp(binarize_softly, jnp.asarray(values))
        np.testing.assert_array_equal(found, mask)
        assert positive_units(jnp.asarray(values)) == sum(mask)
        np.testing.assert_array_equal(pullback(jnp.asarray([5.0, 6.0, 7.0]))[0], [5.0, 6.0, 7.0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_counts_become_thresholds_and_counts_again(temperature):
    cost = HeadRowCost(CONFIG, HEAD_ROW)
    for kept in (FULL, dict.fromkeys(FULL, 1), {name: max(1, n // 3) for name, n in FULL.items()}):
        assert threshold_counts(cost, counted_logits(cost, kept, temperature), temperature) == kept


def test_a_soft_budget_is_the_count_and_pulls_on_every_score(scores):
    cost = HeadRowCost(CONFIG, HEAD_ROW)
    value, gradient = jax.value_and_grad(counted_budget(cost, soft=True))(scores)
    kept = {name: max(1, int((s > 0).sum())) for name, s in scores.items()}
    np.testing.assert_allclose(value, density(cost, kept), rtol=1e-6)
    assert all((leaf > 0).all() for leaf in jax.tree.leaves(gradient))


def test_the_boundary_gradient_where_everything_or_one_unit_is_kept():
    upstream = jnp.asarray([1.0, 2.0, 4.0])
    for threshold, beside in ((20.0, 4.0), (-20.0, (1.0 + 2.0) / 2)):
        _, pullback = jax.vjp(
            lambda t: binarize(jnp.asarray([3.0, 2.0, 1.0]), t, 1.0, "boundary"), jnp.float32(threshold)
        )
        slope = jax.grad(jax.nn.sigmoid)(jnp.float32(threshold))
        np.testing.assert_allclose(pullback(upstream)[0], beside * 3 * slope, rtol=1e-5)


@pytest.mark.parametrize("granularities", [(HEAD, ROW), (block((8, 16)),)], ids=["heads and rows", "tiles"])
def test_magnitudes_are_means_over_the_weights_of_a_unit(params, granularities):
    """Every unit's weights set to its number: the scores are the numbers."""
    groups = find_groups(CONFIG, granularities)
    numbers = {g.name: jnp.arange(g.size, dtype=jnp.float32).reshape(g.units) for g in groups}
    ones = jax.tree.map(lambda x: -jnp.ones_like(x), params)
    found = magnitudes(groups, apply_masks(ones, spread(groups, numbers)))
    jax.tree.map(np.testing.assert_allclose, found, numbers)


def test_bert_base_counts_and_published_formula():
    config = ModelConfig()
    groups = find_groups(config, (HEAD, ROW))
    assert dense_size(config) == 85_054_464
    thresholds = {g.name: jnp.float32(x) for g, x in zip(groups, np.linspace(-2, 3, len(groups)), strict=True)}
    kept = {name: float(jax.nn.sigmoid(t)) for name, t in thresholds.items()}
    terms = []
    for i in range(12):
        a, o, f1, f2 = (kept[f"layer_{i}/{n}"] for n in ("attention", "attention_output", "ffn", "ffn_output"))
        terms.append(3 * a + a * o + 4 * f1 + 4 * f1 * f2)
    assert HeadRowCost(config, groups).budget(thresholds) == pytest.approx(sum(terms) / 144, rel=1e-6)


@pytest.mark.parametrize("tiles", [None, (8, 8), (16, 8), (8, 16)])
def test_cut_is_the_largest_count_not_above_the_target(tiles):
    cost = HeadRowCost(CONFIG, HEAD_ROW, tiles)
    thresholds = {g.name: x for g, x in zip(HEAD_ROW, np.linspace(-1, 2, len(HEAD_ROW)), strict=True)}
    for target in (0.35, 0.5, 0.8, 1.0):
        if target < smallest_density(cost):
            continue
        kept = cost.round_up(cut_to(cost, thresholds, target))
        assert density(cost, kept) <= target
        for group in HEAD_ROW:
            more = cost.round_up({**kept, group.name: min(kept[group.name] + 1, group.size)})
            assert more == kept or density(cost, more) > target


@pytest.mark.parametrize("tiles", [None, (8, 8), (16, 8)])
@pytest.mark.parametrize("equal", [False, True])
def test_scores_are_cut_in_one_order(tiles, equal):
    """All above one threshold fit and all from it on do not; then single units, until no more of any group fits."""
    cost = HeadRowCost(CONFIG, HEAD_ROW, tiles)
    drawn = np.random.default_rng(0).permutation(sum(FULL.values())).astype(np.float32)
    parts = np.split(drawn * (not equal), np.cumsum(list(FULL.values()))[:-1])
    scores = dict(zip(FULL, parts, strict=True))
    for target in (0.5, 0.8, 1.0):
        kept = cut_scores(cost, scores, target)
        assert density(cost, kept) <= target
        for group in HEAD_ROW:
            more = {**kept, group.name: min(cost.round_up(kept)[group.name] + 1, group.size)}
            assert cost.round_up(more) == cost.round_up(kept) or density(cost, more) > target
        falling = {name: np.sort(values)[::-1] for name, values in scores.items()}
        dropped = [falling[name][cost.round_up(kept)[name]] for name in FULL if cost.round_up(kept)[name] < FULL[name]]
        if equal:
            shares = [kept[name] / size for name, size in FULL.items() if size > 8]
            assert max(shares) - min(shares) < 2.5 / 32  # a unit by the order and one given back, of 32 at least
        elif dropped:
            fitting = {name: max(1, int((values > max(dropped)).sum())) for name, values in scores.items()}
            beyond = {name: max(1, int((values >= max(dropped)).sum())) for name, values in scores.items()}
            assert density(cost, fitting) <= target < density(cost, beyond)
            assert all(kept[name] >= fitting[name] for name in FULL)


def test_rounded_units_make_every_matrix_tileable(params, scores):
    for tiles in ((8, 8), (16, 8), (8, 16), (16, 16)):
        cost = HeadRowCost(CONFIG, HEAD_ROW, tiles)
        kept = cost.round_up({g.name: g.size * 2 // 5 + 1 for g in HEAD_ROW})
        _, config = shrink(params, masks_keeping(HEAD_ROW, scores, kept), CONFIG)
        groups = find_groups(config, (block(tiles),))
        assert sum(g.size * tiles[0] * tiles[1] for g in groups) == encoder_size(config, biases=False)


def test_unreachable_density_is_refused():
    with pytest.raises(ConfigError, match="cannot be reached"):
        cut_to(HeadRowCost(CONFIG, HEAD_ROW), dict.fromkeys(FULL, 0.0), 0.01)


def test_block_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="block of 20x20 does not divide attention/query"):
        find_groups(CONFIG, (block((20, 20)),))


@pytest.mark.parametrize("tiles", [(8, 8), (16, 8), (4, 16)])
def test_block_masks_count_and_cut_whole_tiles(params, tiles):
    groups = find_groups(CONFIG, (block(tiles),))
    cost = BlockCost(CONFIG, groups)
    kept = cut_to(cost, {g.name: 0.3 for g in groups}, 0.4)
    masks = masks_keeping(groups, init_scores(groups, "kaiming_uniform", seed=5), kept)
    assert count_kept(groups, masks) == kept
    folded = apply_masks(params, masks)
    alive = sum(int(jnp.sum(x != 0)) for x in jax.tree.leaves(folded["bert"]["encoder"]))
    assert alive == cost.count(kept)
    assert density(cost, kept) <= 0.4 < (cost.count(kept) + tiles[0] * tiles[1]) / dense_size(CONFIG)


def half_of_all(params):
    return shrink(params, masks_keeping(HEAD_ROW, init_scores(HEAD_ROW), {n: s // 2 for n, s in FULL.items()}), CONFIG)


@pytest.mark.parametrize("shrunk", [False, True])
def test_counted_budget_is_the_count_with_the_gradient_of_r(params, shrunk):
    """R is over a model's own size and the count over the dense one's, of which half the units have 3176 of 7504."""
    config, scale = (half_of_all(params)[1], 3176 / 7504) if shrunk else (CONFIG, 1.0)
    groups = find_groups(config, (HEAD, ROW))
    cost = HeadRowCost(config, groups, (8, 8))
    thresholds = {g.name: jnp.float32(0.4) for g in groups}
    value, gradient = jax.value_and_grad(counted_budget(cost))(thresholds)
    kept = threshold_counts(cost, dict.fromkeys(FULL, 0.4))
    assert value == pytest.approx(density(cost, kept), rel=1e-6)
    expected = jax.grad(cost.budget)(thresholds)
    for name in FULL:
        assert gradient[name] == pytest.approx(float(expected[name]) * scale, rel=1e-5)


@pytest.mark.parametrize(
    "cost", [HeadRowCost(CONFIG, HEAD_ROW), BlockCost(CONFIG, find_groups(CONFIG, (block((8, 8)),)))]
)
def test_a_temperature_divides_what_the_sigmoid_is_taken_of(cost):
    values = np.linspace(-2, 3, len(cost.groups), dtype=np.float32)
    thresholds = {g.name: jnp.float32(t) for g, t in zip(cost.groups, values, strict=True)}
    cooled = {name: threshold / 4 for name, threshold in thresholds.items()}
    assert cost.budget(thresholds, 4.0) == cost.budget(cooled, 1.0) != cost.budget(thresholds, 1.0)
    value, gradient = jax.value_and_grad(counted_budget(cost, temperature=4.0))(thresholds)
    wanted, steep = jax.value_and_grad(counted_budget(cost))(cooled)
    assert value == pytest.approx(float(wanted), rel=1e-6)
    for name in thresholds:
        assert gradient[name] == pytest.approx(float(steep[name]) / 4, rel=1e-5)


@pytest.mark.parametrize("target", [0.2, 0.35, 0.5, 0.8])
def test_a_cut_at_a_temperature_is_the_cut_of_divided_thresholds(target):
    cost = HeadRowCost(CONFIG, HEAD_ROW)
    thresholds = {g.name: float(t) for g, t in zip(HEAD_ROW, np.linspace(-2, 3, len(HEAD_ROW)), strict=True)}
    kept = cut_to(cost, thresholds, target, temperature=3.0)
    assert kept == cut_to(cost, {name: t / 3 for name, t in thresholds.items()}, target)
    assert kept != cut_to(cost, thresholds, target)


def test_masks_follow_the_temperature_and_the_gradient_of_thresholds():
    """16 units, a threshold of 3 at temperature 3: 16 * sigmoid(1) = 11.7, so 12 stay."""
    group = find_groups(CONFIG.model_copy(update={"hidden_size": 16}), (ROW,))[0]
    worth = ranks = jnp.arange(16.0)

    def kept_worth(threshold, gradient):
        masks = compute_masks(
            (group,), {group.name: -ranks}, {group.name: threshold}, temperature=3.0, threshold_gradient=gradient
        )
        return jnp.sum(jax.tree.leaves(masks)[0] * worth)

    for gradient, slope in (("sum", 66.0), ("boundary", (11 + 12) / 2 * 16 * 0.1966119 / 3)):
        value, found = jax.value_and_grad(kept_worth)(jnp.float32(3.0), gradient)
        assert value == sum(range(12))
        assert found == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(("init", "width"), [("uniform", 0.2), ("kaiming_uniform", 1.0)])
def test_each_group_draws_scores_of_its_own(init, width):
    found = init_scores(HEAD_ROW, init, seed=1, scale=0.2)
    assert len({float(value[0]) for value in found.values()}) == len(HEAD_ROW)
    together = np.concatenate(list(found.values()))
    assert -width <= together.min() < -0.9 * width
    assert 0.9 * width < together.max() <= width
    again, other = (init_scores(HEAD_ROW, init, seed=seed, scale=0.2) for seed in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, again, found)
    assert not any(np.array_equal(other[name], found[name]) for name in found)


def test_a_floor_that_binds_stops_the_gradient():
    cost = HeadRowCost(CONFIG, HEAD_ROW)
    gradient = jax.grad(cost.budget)({g.name: jnp.float32(-20.0) for g in HEAD_ROW})
    assert all(value == 0 for value in gradient.values())


def test_columns_are_a_new_granularity_without_new_code(params):
    """A column = the inputs of one output block: nothing but a value describes it."""
    column = Granularity("column", {"ffn_columns": ("ffn/intermediate",)}, (32, 4), cuts_bias=False)
    groups = find_groups(CONFIG, (column,))
    masks = as_bool(compute_masks(groups, init_scores(groups), init_thresholds(groups, 0.0)))
    kernel = apply_masks(params, masks)["bert"]["encoder"]["layer_0"]["ffn"]["intermediate"]["kernel"]
    assert groups[0].units == (1, 12)
    assert int((jnp.abs(kernel).sum(0) > 0).sum()) == 24


def test_masks_that_fit_nothing_are_refused(params):
    with pytest.raises(ConfigError, match="unknown parameters"):
        apply_masks(params, {"nothing": jnp.ones(3)})
    with pytest.raises(ConfigError, match="does not fit"):
        apply_masks(params, {"head": {"bias": jnp.ones(2)}})


def test_a_mask_covers_the_trailing_axes_of_any_parameter():
    weight = np.arange(1, 33, dtype=np.float32).reshape(2, 4, 4)
    mask = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(apply_mask(weight, mask), weight * np.kron(mask, np.ones((2, 2), np.float32)))
    for wrong in (np.ones((), bool), np.ones((0, 2), bool), np.ones((1, 2, 2), bool), np.ones((3, 2), bool)):
        with pytest.raises(ConfigError, match="does not fit"):
            apply_mask(weight, wrong)
