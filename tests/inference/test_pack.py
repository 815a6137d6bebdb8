"""Packed parameters: bit for bit the masked ones, and a model that runs and trains on them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.errors import ConfigError
from mlprune_jax.inference.pack import PackedDense, pack_params
from mlprune_jax.models.tasks import TaskModel
from pallas_kernels import BlockSparse, to_dense
from tests.documents import examples, execute
from tests.inference.conftest import CONFIG, batch, close, plain_logits, with_mask


def is_packed(leaf):
    return isinstance(leaf, BlockSparse)


def unpacked(tree):
    return jax.tree.map(lambda leaf: np.asarray(to_dense(leaf)) if is_packed(leaf) else leaf, tree, is_leaf=is_packed)


def test_packing_loses_nothing(tile_model):
    packed = pack_params(tile_model.params, tile_model.masks)
    assert sum(map(is_packed, jax.tree.leaves(packed, is_leaf=is_packed))) == 12
    jax.tree.map(np.testing.assert_array_equal, unpacked(packed), tile_model.params)


def test_what_is_masked_is_dropped_even_if_it_is_not_zero():
    kernel = np.ones((32, 32), np.float32)
    packed = pack_params({"kernel": kernel}, {"kernel": np.array([[True, False], [False, True]])})
    np.testing.assert_array_equal(to_dense(packed["kernel"]), np.kron(np.eye(2), np.ones((16, 16))))


def test_tiles_that_no_kernel_takes_stay_dense_and_masked():
    packed = pack_params({"kernel": np.ones((16, 16), np.float32)}, {"kernel": np.eye(2, dtype=bool)})
    np.testing.assert_array_equal(packed["kernel"], np.kron(np.eye(2), np.ones((8, 8))))


@pytest.mark.parametrize(
    ("masks", "told"),
    [({"other": np.ones((2, 2), bool)}, "unknown parameters"), ({"kernel": np.ones((3, 2), bool)}, "no tile mask")],
)
def test_masks_that_do_not_fit(masks, told):
    with pytest.raises(ConfigError, match=told):
        pack_params({"kernel": np.ones((32, 32), np.float32)}, masks)


def test_a_packed_model_runs_and_trains_its_stored_blocks(tile_model):
    packed = pack_params(tile_model.params, tile_model.masks)
    inputs = batch()

    @partial(jax.jit, static_argnums=1)
    @partial(jax.value_and_grad, has_aux=True, allow_int=True)
    def gradients(params, dense):
        model = TaskModel(CONFIG, "classification", 3, dense=dense)
        logits = model.apply({"params": params}, *with_mask(inputs)).logits
        return jnp.square(logits).sum(), logits

    (_, logits), gradient = gradients(packed, PackedDense)
    close(np.asarray(logits), plain_logits(CONFIG, tile_model.params, "classification", inputs))
    _, dense = gradients(tile_model.params, TaskModel.dense)
    layer = ("bert", "encoder", "layer_1", "ffn", "intermediate", "kernel")
    found, wanted, stored = gradient, dense, packed
    for key in layer:
        found, wanted, stored = found[key], wanted[key], stored[key]
    stays = to_dense(replace(stored, values=jnp.ones_like(stored.values)))
    spread = to_dense(replace(stored, values=found.values))
    close(np.asarray(spread), np.asarray(wanted * stays), depth=64 * 36)  # summed over 36 tokens as well


def test_stored_blocks_are_fine_tuned_as_the_document_says(tile_model):
    """Found by review: places of blocks are integers, which neither `jax.grad` nor optax takes."""
    (example,) = (text for text in examples("docs/inference.md") if "PackedDense" in text)
    inputs = batch()
    given = {"config": CONFIG, "params": tile_model.params, "masks": tile_model.masks, "num_labels": 3}
    done = execute(example, **given, batch=with_mask(inputs), labels=jnp.arange(len(inputs[0])) % 3)
    first = [leaf for leaf, moves in zip(done["leaves"], done["moves"], strict=True) if moves]
    assert done["loss"](done["trained"]) < done["loss"](first)
    moved = done["whole"](done["trained"])
    assert sum(map(is_packed, jax.tree.leaves(moved, is_leaf=is_packed))) == 12
