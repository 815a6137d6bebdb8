"""What tile masks leave idle goes, and the function stays."""

import copy

import jax
import numpy as np
import pytest

from mlprune_jax.inference.simplify import Masked, simplify
from mlprune_jax.pruning.density import encoder_size
from mlprune_jax.pruning.masks import apply_masks
from tests.inference.conftest import CONFIG, batch, close, masked, plain_logits, random_masks, random_params


def with_tiles(edit) -> Masked:
    """A model with all tiles but those that ``edit`` clears in the first layer's masks."""
    masks = copy.deepcopy(random_masks(CONFIG, 2.0, 0))
    edit(masks["bert"]["encoder"]["layer_0"])
    params = apply_masks(random_params(CONFIG, "classification", 3), masks)
    return Masked(jax.tree.map(np.asarray, params), masks, CONFIG)


def clear(group, matrix, where):
    def edit(layer):
        layer[group][matrix]["kernel"][where] = False

    return edit


EVERYTHING = np.s_[:, :]
# What is cleared, and the heads and FFN units that then stay in the first layer (tiles and heads are 16 wide).
CASES = {
    "units without inputs": (clear("ffn", "intermediate", np.s_[:, 1:3]), 4, 32),
    "units without outputs": (clear("ffn", "output", np.s_[0, :]), 4, 48),
    "heads without values": (clear("attention", "value", np.s_[:, 2]), 3, 64),
    "heads without outputs": (clear("attention", "output", np.s_[1:3, :]), 2, 64),
    "heads without queries stay": (clear("attention", "query", np.s_[:, 0]), 4, 64),
    "all units idle, a tile stays": (clear("ffn", "intermediate", EVERYTHING), 4, 16),
    "all heads idle, one stays": (clear("attention", "output", EVERYTHING), 1, 64),
}


@pytest.mark.parametrize(("edit", "heads", "units"), CASES.values(), ids=CASES)
def test_idle_parts_go_and_the_function_stays(edit, heads, units):
    model = with_tiles(edit)
    small = simplify(model)
    shape = small.config.layer_shapes[0]
    assert (len(shape.heads or range(4)), len(shape.ffn or range(64))) == (heads, units)
    assert small.config.layer_shapes[1] == CONFIG.layer_shapes[1]
    inputs = batch()
    wanted = plain_logits(model.config, model.params, "classification", inputs)
    close(plain_logits(small.config, small.params, "classification", inputs), wanted)


def test_what_an_idle_unit_adds_goes_by_the_configs_gelu():
    """tanh's here; biases of about 2 are where it is farthest from erf's."""
    model = with_tiles(clear("ffn", "intermediate", np.s_[:, 1:3]))
    ffn = model.params["bert"]["encoder"]["layer_0"]["ffn"]
    bias = ffn["intermediate"]["bias"] = np.linspace(-3, 3, 64, dtype=np.float32)
    config = CONFIG.model_copy(update={"hidden_act": "gelu_new"})
    small = simplify(model._replace(config=config)).params["bert"]["encoder"]["layer_0"]["ffn"]
    value = 0.5 * bias * (1 + np.tanh(np.sqrt(2 / np.pi) * (bias + 0.044715 * bias**3)))
    wanted = ffn["output"]["bias"] + value[16:48] @ ffn["output"]["kernel"][16:48]
    np.testing.assert_allclose(small["output"]["bias"], wanted, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_masks_fit_what_is_left(seed):
    small = simplify(masked(kept=0.3, seed=seed))
    again = apply_masks(small.params, small.masks)
    jax.tree.map(np.testing.assert_array_equal, again, small.params)
    assert encoder_size(small.config) < encoder_size(CONFIG)  # at 0.3 some column of 4 tiles is empty in every seed


def test_nothing_idle_is_the_model_itself():
    model = with_tiles(lambda layer: None)
    assert simplify(model) is model
