"""What a loop of one's own meets: other dtypes, donated arrays, a temperature that moves, values that mean nothing."""

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pruning.binarize import binarize, kept_units
from mlprune_jax.pruning.density import HeadRowCost, counted_budget, cut_scores, cut_to, density
from mlprune_jax.pruning.expand import expand
from mlprune_jax.pruning.granularity import HEAD, ROW, block, find_groups
from mlprune_jax.pruning.masks import apply_masks, compute_masks, init_scores, init_thresholds, masks_keeping
from mlprune_jax.pruning.regularizer import add_density_penalty
from mlprune_jax.pruning.shrink import shrink

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)
GROUPS = find_groups(CONFIG, (HEAD, ROW))
COST = HeadRowCost(CONFIG, GROUPS)
MODEL = TaskModel(CONFIG, "classification", 2)
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (4, 6)), jnp.int32)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, 0)


@pytest.mark.parametrize(("threshold", "temperature"), [(5.0, 1.0), (64.0, 1.0), (-1e3, 1.0), (1e3, 1.0), (5.0, 0.05)])
def test_thresholds_anywhere_are_cut_to_the_target(threshold, temperature):
    """Found by review: above 60 temperatures nothing was cut, and nothing said."""
    kept = cut_to(COST, dict.fromkeys((g.name for g in GROUPS), threshold), 0.4, temperature=temperature)
    assert 0.39 < density(COST, kept) <= 0.4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_cuts_nothing(value):
    scores, thresholds = init_scores(GROUPS), {g.name: 0.0 for g in GROUPS}
    with pytest.raises(ConfigError, match="a density must be a finite number"):
        cut_scores(COST, scores, value)
    name = GROUPS[1].name
    with pytest.raises(ConfigError, match=f"scores of {name}"):
        cut_scores(COST, {**scores, name: scores[name].at[0].set(value)}, 0.4)
    with pytest.raises(ConfigError, match=f"thresholds of {name}"):
        cut_to(COST, {**thresholds, name: value}, 0.4)


def test_names_of_no_meaning_are_refused():
    with pytest.raises(ConfigError, match="no threshold_gradient 'summ': sum or boundary"):
        unwrap(binarize.fun)(jnp.arange(4.0), jnp.float32(0), 1.0, "summ")
    with pytest.raises(ConfigError, match="scale must be above 0"):
        init_scores(GROUPS, "uniform")
    for shape in ((-16, 16), (0, 16), (16.0, 16.0)):
        with pytest.raises(ConfigError, match="whole numbers above 0"):
            unwrap(block)(shape)


def test_a_temperature_may_move_inside_a_step():
    scores, threshold = jnp.arange(8.0), jnp.float32(1.0)

    @jax.jit
    def kept(temperature):
        return binarize(scores, threshold, temperature).sum()

    assert [int(kept(t)) for t in (0.25, 1.0, 8.0)] == [int(kept_units(threshold, 8, t)) for t in (0.25, 1.0, 8.0)]
    assert float(jax.grad(kept)(1.0)) == 0.0


def test_half_precision_parameters_train_under_masks(params):
    """Found by review: kernels had float32 gradients, and with masks nothing ran at all."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    trained = {"params": half, "scores": init_scores(GROUPS, "uniform", scale=0.3)}
    optimizer = optax.adam(1e-3)

    def loss(trained):
        masked = apply_masks(trained["params"], compute_masks(GROUPS, trained["scores"], None))
        logits = MODEL.apply({"params": masked}, IDS, jnp.ones_like(IDS), jnp.zeros_like(IDS)).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, IDS[:, 0] % 2).mean()

    @jax.jit
    def step(carry, _):
        trained, state = carry
        updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
        return (optax.apply_updates(trained, updates), state), loss(trained)

    with jax.numpy_dtype_promotion("standard"):  # jax's default, which users have
        _, losses = jax.lax.scan(step, (trained, optimizer.init(trained)), length=20)
    assert losses[-1] < losses[0] - 0.01


def test_a_units_gradient_is_summed_in_float32():
    rng = np.random.default_rng(0)
    weight, upstream = (jnp.asarray(rng.normal(size=(3072, 8)), jnp.bfloat16) for _ in range(2))

    def worth(mask):
        return (apply_masks({"k": weight}, {"k": mask})["k"] * upstream).astype(jnp.float32).sum()

    exact = (np.asarray(weight, np.float64) * np.asarray(upstream, np.float64)).sum(0)
    # Each term is exact in float32, and so the sum's rounding alone remains: at most 2^-24 of it for each of its terms.
    terms = np.abs(np.asarray(weight, np.float64) * np.asarray(upstream, np.float64)).sum(0).max()
    gradient = jax.jit(jax.grad(worth))(jnp.ones(8))
    np.testing.assert_allclose(gradient, exact, rtol=0, atol=2**-24 * 3072**0.5 * terms)


def test_counts_and_budgets_do_not_depend_on_the_logits_dtype():
    """Found by review: 3 * 768 * 768 weights are more than float16 holds, 2246 units more than bfloat16 tells apart."""
    base = ModelConfig()
    groups = find_groups(base, (HEAD, ROW))
    budget = counted_budget(HeadRowCost(base, groups), soft=True)
    scores = jax.tree.map(lambda x: x.astype(jnp.float16), init_scores(groups, "uniform", scale=0.3))
    value, gradient = jax.value_and_grad(budget)(scores)
    assert np.isfinite(value)
    assert all(leaf.dtype == jnp.float16 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert int(kept_units(jnp.bfloat16(1.0), 3072)) == int(kept_units(jnp.float32(1.0), 3072))


def test_what_shrink_and_expand_give_may_be_donated(params):
    """Found by review: what nothing was cut from was the caller's own array, and donating it deleted the teacher's."""
    masks = masks_keeping(GROUPS, init_scores(GROUPS), {g.name: max(1, g.size // 2) for g in GROUPS})
    small, config = shrink(params, masks, CONFIG)
    for given, source in ((small, params), (expand(small, config)[0], small)):
        assert {type(leaf) for leaf in jax.tree.leaves(given)} == {np.ndarray}
        word = [np.asarray(tree["bert"]["embeddings"]["word"]["embedding"]) for tree in (given, source)]
        assert not np.shares_memory(*word)


def test_the_penalty_keeps_its_state_under_inject_hyperparams():
    """A sweep over strengths is one program; the budget is a function, and no schedule."""
    injected = optax.inject_hyperparams(add_density_penalty, static_args=("budget",))
    transform = injected(counted_budget(COST), 0.5, max_strength=20000.0)
    thresholds = {"thresholds": init_thresholds(GROUPS, 5.0)}
    state = transform.init(thresholds)
    zeros = jax.tree.map(jnp.zeros_like, thresholds)
    updates, after = jax.jit(transform.update)(zeros, state, thresholds)
    assert jax.tree.map(lambda x: (x.dtype, x.shape), after) == jax.tree.map(lambda x: (x.dtype, x.shape), state)
    assert all(float(leaf) > 0 for leaf in jax.tree.leaves(updates))


def test_a_kind_of_task_that_there_is_not():
    with pytest.raises(ConfigError, match="no kind 'spans' of task: there are classification, regression, span"):
        jax.eval_shape(MODEL.clone(kind="spans").init, jax.random.key(0), IDS, IDS, IDS)
