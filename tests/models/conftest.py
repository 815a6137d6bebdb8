"""Tiny checkpoints for the tests of model folders."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.models.names import Kind
from mlprune_jax.models.pretrained import expected_shapes, load_pretrained, save_pretrained

DENSE = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=6,
    type_vocab_size=2,
    initializer_range=0.05,
)
SHRUNK = DENSE.model_copy(
    update={
        "layers": (
            LayerShape(heads=(1,), attention_output=(0, 2, 7), ffn=(1, 3, 4, 11), ffn_output=(5,)),
            LayerShape(ffn=(0, 6)),
        )
    }
)
LABELS = {"classification": ("no", "maybe", "yes"), "regression": None, "span": None}
SIZES = {"classification": 3, "regression": 1, "span": 2}


def make_params(config=DENSE, kind: Kind = "classification"):
    rng = np.random.default_rng(0)
    params: dict = {}
    for path, shape in expected_shapes(config, num_labels=SIZES[kind], kind=kind).items():
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = rng.standard_normal(shape).astype(np.float32)
    return params


def torch_tensors(*, head="classifier", labels=3, pooler=True):
    """A torch checkpoint of DENSE, its names and [out, in] shapes written out by hand: the table's second opinion."""
    d, f = 8, 12
    shapes = {
        "bert.embeddings.word_embeddings.weight": (11, d),
        "bert.embeddings.position_embeddings.weight": (6, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "bert.embeddings.LayerNorm.weight": (d,),
        "bert.embeddings.LayerNorm.bias": (d,),
    }
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        matrices = {"attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d)}
        matrices |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
        for name, shape in matrices.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (d,), f"{layer}.{name}.bias": (d,)}
    if pooler:
        shapes |= {"bert.pooler.dense.weight": (d, d), "bert.pooler.dense.bias": (d,)}
    if head:
        shapes |= {f"{head}.weight": (labels, d), f"{head}.bias": (labels,)}
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder, tensors, **changes):
    folder.mkdir(exist_ok=True)
    config = {**DENSE.model_dump(exclude={"layers"}), "model_type": "bert", "use_cache": True, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder, num_labels=None, kind: Kind = "classification", **options):
    return load_pretrained(folder, num_labels=num_labels, kind=kind, **options)


def leaves(tree, prefix=()):
    for key, value in tree.items():
        yield from leaves(value, (*prefix, key)) if isinstance(value, dict) else [((*prefix, key), value)]


def assert_same(first, second):
    first, second = dict(leaves(first)), dict(leaves(second))
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert value.dtype == second[path].dtype == np.float32, path
        np.testing.assert_array_equal(value, second[path], err_msg="/".join(path))


@pytest.fixture(scope="session")
def tiny():
    """The sizes of a tiny BERT and the functions that make, load and compare its checkpoints."""
    functions = (make_params, torch_tensors, write_folder, load, leaves, assert_same)
    constants = dict(DENSE=DENSE, SHRUNK=SHRUNK, LABELS=LABELS, SIZES=SIZES)
    return SimpleNamespace(**constants, **{function.__name__: function for function in functions})


@pytest.fixture
def saved(tmp_path):
    """A folder with a saved dense classifier."""
    folder = tmp_path / "model"
    save_pretrained(folder, DENSE, make_params(), kind="classification", labels=LABELS["classification"])
    return folder
