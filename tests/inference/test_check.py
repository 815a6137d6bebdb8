"""Stored tile masks that do not fit the weights beside them are found before anything is packed."""

import copy

import numpy as np
import pytest

from mlprune_jax.errors import IntegrityError
from mlprune_jax.inference.check import check_masks
from tests.inference.conftest import CONFIG, masked


def drop(layer):
    del layer["ffn"]["output"]


def replace(mask):
    def edit(layer):
        layer["ffn"]["output"]["kernel"] = mask

    return edit


def other_tiles(layer):
    old = layer["attention"]["query"]["kernel"]
    layer["attention"]["query"]["kernel"] = old.repeat(2, 0)


def other_masks(layer):
    layer["ffn"]["output"]["kernel"] = ~layer["ffn"]["output"]["kernel"]


def extra(layer):
    layer["ffn"]["norm"] = {"kernel": np.ones((1, 1), bool)}


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (drop, "missing or extra: bert/encoder/layer_0/ffn/output/kernel"),
        (extra, "missing or extra: bert/encoder/layer_0/ffn/norm/kernel"),
        (replace(np.ones((4, 4), np.uint8)), "no bool tile mask"),
        (replace(np.ones((3, 4), bool)), "no bool tile mask"),
        (replace(np.ones((0, 4), bool)), "no bool tile mask"),
        (replace(np.ones(64, bool)), "no bool tile mask"),
        (other_tiles, "wanted one shape"),
        (other_masks, "hold weights that are not zero"),
    ],
)
def test_what_does_not_fit(edit, told):
    model = masked()
    masks = copy.deepcopy(model.masks)
    edit(masks["bert"]["encoder"]["layer_0"])
    with pytest.raises(IntegrityError, match=told):
        check_masks(model.params, masks, CONFIG)


def test_what_was_stored_together_fits():
    model = masked()
    check_masks(model.params, model.masks, CONFIG)
