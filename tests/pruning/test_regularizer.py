"""The density penalty as an optax transform."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.regularizer import DensityPenaltyState, adaptive_strength, add_density_penalty


def budget(thresholds):
    return jnp.mean(jax.nn.sigmoid(thresholds["t"]))


PARAMS = {"weights": jnp.ones(3), "thresholds": {"t": jnp.asarray([2.0, 0.5])}}
GRADS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_adds_strength_times_gradient_to_the_thresholds_alone():
    transform = add_density_penalty(budget, 0.5)
    updates, state = jax.jit(transform.update)(GRADS, transform.init(PARAMS), PARAMS)
    density = budget(PARAMS["thresholds"])
    penalty = (density - 0.5) ** 2
    strength = max(20000 * penalty / 0.25, 50)
    wanted = strength * 2 * (density - 0.5) * jax.grad(budget)(PARAMS["thresholds"])["t"]
    np.testing.assert_allclose(updates["thresholds"]["t"], wanted, rtol=1e-5)
    assert not updates["weights"].any()
    assert isinstance(state, DensityPenaltyState)
    np.testing.assert_allclose([state.density, state.penalty, state.strength], [density, penalty, strength], rtol=1e-5)
    assert state.updates == 1


@pytest.mark.parametrize(("two_sided", "pulls"), [(False, False), (True, True)])
def test_below_the_target_only_the_two_sided_form_pulls_back(two_sided, pulls):
    transform = add_density_penalty(budget, 0.95, two_sided=two_sided)
    updates, _ = transform.update(GRADS, transform.init(PARAMS), PARAMS)
    assert bool((updates["thresholds"]["t"] < 0).all()) == pulls


def test_far_below_a_target_near_one_the_strength_is_bounded():
    """Found by review: in a step or two it filled Adam's second moments for the rest of a stage."""
    transform = add_density_penalty(budget, 0.9999, two_sided=True)
    _, state = transform.update(GRADS, transform.init(PARAMS), PARAMS)
    assert state.strength == 20000


@jax.numpy_dtype_promotion("standard")  # optax asks for it
def test_works_inside_the_wrappers_of_optax():
    """Found by review: a buffer donated twice, a traced target, another kind of mapping."""
    several = optax.MultiSteps(optax.chain(add_density_penalty(budget, 0.5), optax.sgd(1.0)), 2)
    step = jax.jit(lambda params, state: several.update(GRADS, state, params), donate_argnums=1)
    updates, state = step(PARAMS, several.init(PARAMS))
    assert not updates["thresholds"]["t"].any()
    assert step(PARAMS, state)[0]["thresholds"]["t"].all()
    injected = optax.inject_hyperparams(add_density_penalty, static_args=("budget",))(budget=budget, target=0.5)
    updates, _ = jax.jit(injected.update)(GRADS, injected.init(PARAMS), PARAMS)
    assert (updates["thresholds"]["t"] > 0).all()
    transform, params = add_density_penalty(budget, 0.5), flax.core.freeze(PARAMS)
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_target_one_asks_for_nothing():
    transform = add_density_penalty(budget, 1.0, two_sided=True)
    updates, state = transform.update(GRADS, transform.init(PARAMS), PARAMS)
    assert not updates["thresholds"]["t"].any()
    assert state.strength == 0


def test_strength_is_relative_to_what_there_is():
    """Found by review: of a model that is half pruned already, everything kept had a seventh of the strength."""
    assert adaptive_strength(jnp.float32(0.09), 0.2, full=0.5) == pytest.approx(20000)
    assert adaptive_strength(jnp.float32(0.0225), 0.2, full=0.5) == pytest.approx(5000)
    assert adaptive_strength(jnp.float32(0.0), 0.5, full=0.4) == 0  # below the target already
    transform = add_density_penalty(lambda thresholds: 0.5 * budget(thresholds), 0.2, full=0.5)
    everything = {"thresholds": {"t": jnp.full((2,), 40.0)}}
    _, state = transform.update(jax.tree.map(jnp.zeros_like, everything), transform.init(everything), everything)
    assert state.strength == pytest.approx(20000)


def test_strength_levels():
    assert adaptive_strength(jnp.float32(0.25), 0.5) == 20000
    assert adaptive_strength(jnp.float32(4e-4), 0.5) == 50
    assert adaptive_strength(jnp.float32(2e-4), 0.5) == 10
    assert jax.grad(lambda p: adaptive_strength(p, 0.5))(0.25) == 0


def test_a_schedule_ramps_the_target_and_the_whole_tree_may_be_thresholds():
    transform = add_density_penalty(budget, lambda count: jnp.where(count < 1, 1.0, 0.2), key=None)
    thresholds = PARAMS["thresholds"]
    state = transform.init(thresholds)
    first, state = transform.update(GRADS["thresholds"], state, thresholds)
    second, _ = transform.update(GRADS["thresholds"], state, thresholds)
    assert not first["t"].any()
    assert (second["t"] > 0).all()


def test_before_the_clip_the_penalty_counts_in_the_norm():
    chain = optax.chain(add_density_penalty(budget, 0.1), optax.clip_by_global_norm(1.0))
    updates, _ = chain.update(GRADS, chain.init(PARAMS), PARAMS)
    assert optax.tree.norm(updates) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5])
def test_impossible_targets_are_refused(target):
    with pytest.raises(ConfigError, match=r"must lie in \(0, 1\]"):
        add_density_penalty(budget, target)


def test_params_are_needed():
    transform = add_density_penalty(budget, 0.5)
    with pytest.raises(ValueError, match="needs params"):
        transform.update(GRADS, transform.init(PARAMS))
