"""What the optimiser of a stage does with gradients, apart from any model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlprune_jax.config.settings import BlockStage
from mlprune_jax.training.optimizer import clip_by_global_norm, pruning_optimizer


def gradients(seed: int) -> Any:
    draw = np.random.default_rng(seed).normal
    return {
        "params": {"w": jnp.asarray(draw(size=(4, 3)), jnp.float32)},
        "scores": {"a": jnp.asarray(draw(size=5), jnp.float32), "b": jnp.asarray(draw(size=5), jnp.float32)},
        "thresholds": {"a": jnp.float32(draw()), "b": jnp.float32(draw())},
    }


def trained(steps: int = 6, **settings: Any) -> Any:
    """Parameters after some steps of ``settings``; the budget is the mean of the kept fractions."""
    stage = BlockStage(ramp=None, warmup=0.0, learning_rate=1e-2, **settings)

    def budget(thresholds):
        return jnp.mean(jax.nn.sigmoid(jnp.stack(list(thresholds.values()))))

    optimizer = pruning_optimizer(stage, 100, budget, 0.3, 0.1)
    params = jax.tree.map(jnp.zeros_like, gradients(0)) | {"thresholds": {"a": jnp.float32(2), "b": jnp.float32(2)}}
    state = optimizer.init(params)
    for seed in range(steps):
        with jax.numpy_dtype_promotion("standard"):  # as in the step: optax asks for it
            updates, state = optimizer.update(gradients(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_the_clip_is_that_of_optax(max_norm):
    own, other = (
        clip.update(gradients(1), clip.init({}))[0]
        for clip in (clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, other)


def test_weights_clipped_alone_do_not_feel_the_penalty():
    weak, strong = (trained(clip="weights", max_strength=s, min_strength=s)["params"] for s in (1.0, 1e5))
    np.testing.assert_array_equal(weak["w"], strong["w"])
    published = trained(clip="all", max_strength=1e5, min_strength=1e5)["params"]
    assert np.abs(np.asarray(published["w"]) - np.asarray(strong["w"])).max() > 1e-4


def test_weights_clipped_alone_are_still_clipped():
    clipped, free = (trained(clip="weights", max_grad_norm=n, steps=2)["params"]["w"] for n in (0.3, 1e9))
    assert np.abs(np.asarray(clipped) - np.asarray(free)).max() > 1e-5


def test_equal_densities_move_together():
    equal, own = trained(densities="equal")["thresholds"], trained(densities="learned")["thresholds"]
    assert equal["a"] == equal["b"] < 2
    assert own["a"] != own["b"]
