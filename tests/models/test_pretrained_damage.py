"""Damaged and hostile model folders are refused in our words."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import MLPruneError, ModelError
from mlprune_jax.models.pretrained import save_pretrained


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.002, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_weights_are_found(tiny, saved, part):
    path = saved / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors") as caught:
        tiny.load(saved)
    assert "download it again" in str(caught.value)


def _with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0" * 8


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95garbage and more garbage",
        b"\xff" * 64,
        _with_header(b"[]"),
        _with_header(b"{"),
        _with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}'),
        _with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'),
        _with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}'),
        _with_header(b'{"\xff":1}'),
    ],
)
def test_garbage_weights_are_refused(tiny, saved, data):
    (saved / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="cannot read"):
        tiny.load(saved)


@pytest.fixture
def sharded(tiny, tmp_path):
    """A folder with a saved classifier in shards, and its index."""
    save_pretrained(tmp_path / "m", tiny.DENSE, tiny.make_params(), kind="classification", max_shard_bytes=2000)
    return tmp_path / "m"


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "a\\b.safetensors",
        "x.bin",
        "",
        3,
        None,
        [],
    ],
)
def test_shards_outside_the_folder_are_refused(tiny, sharded, name):
    save_file({"classifier.bias": np.zeros(3, np.float32)}, sharded.parent / "evil.safetensors")
    change = {"classifier.bias": name}
    edit_json(sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update(change))
    with pytest.raises(ModelError, match="only plain"):
        tiny.load(sharded)


def test_shards_may_be_links_as_in_the_hub_cache(tiny, sharded, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for i, name in enumerate(sorted(os.listdir(sharded))):
        (sharded / name).rename(blobs / str(i))
        (sharded / name).symlink_to(blobs / str(i))
    tiny.assert_same(tiny.load(sharded).params, tiny.make_params())


def test_index_and_shards_must_agree(tiny, sharded):
    index = sharded / "model.safetensors.index.json"
    good = index.read_text()
    edit_json(index, lambda value: value["weight_map"].pop("classifier.bias"))
    with pytest.raises(ModelError, match=r"disagree on 1 tensors: classifier\.bias"):
        tiny.load(sharded)
    index.write_text(good)
    edit_json(index, lambda value: value["weight_map"].update({"\ud800more": "model-00001-of-00003.safetensors"}))
    with pytest.raises(ModelError, match=r"disagree|is missing") as caught:
        tiny.load(sharded)
    str(caught.value).encode()
    index.write_text(good)
    next(sharded.glob("model-00002-of-*")).unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-.* is missing"):
        tiny.load(sharded)
    for text in (
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        "[" * 10**5,
        "nonsense",
        "[1]",
        b"\xff".decode("latin1"),
    ):
        index.write_text(text, encoding="latin1")
        with pytest.raises(ModelError):
            tiny.load(sharded)


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({}, "has no layers"),
        ({"layers": [{}]}, "1 layer shapes for num_hidden_layers 2"),
        ({"layers": [{"heads": [2]}, {}]}, "heads must be ascending ids below 2"),
        ({"layers": [{"heads": []}, {}]}, "at least one"),
        ({"layers": [{"rows": [1]}, {}]}, "rows"),
        ({"layers": None}, "layers"),
        ({"layers": [{"heads": [1]}, {}]}, r"query\.weight \(8, 8\) but \(4, 8\)"),
    ],
)
def test_a_pruning_json_that_does_not_fit_is_refused(tiny, saved, pruning, message):
    (saved / "pruning.json").write_text(json.dumps(pruning))
    with pytest.raises(ModelError, match=message):
        tiny.load(saved)


def test_folders_that_are_no_models(tiny, saved, tmp_path):
    with pytest.raises(ModelError, match="not found"):
        tiny.load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="is a file"):
        tiny.load(saved / "config.json")
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(ModelError, match="is empty"):
        tiny.load(tmp_path / "run" / "final")
    (tmp_path / "run" / "final" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no config\.json and no model\.safetensors\n  hint: Is it .*final"):
        tiny.load(tmp_path / "run")
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        tiny.load(tmp_path / "run" / "final")
    with pytest.raises(ModelError, match="cannot read the model folder"):
        tiny.load("x" * 5000)
    (saved / "config.json").unlink()
    os.mkfifo(saved / "config.json")  # opening it would wait for ever
    with pytest.raises(ModelError, match=r"has no config\.json"):
        tiny.load(saved)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("pytorch_model.bin", ["import BertForMaskedLM", ".from_pretrained(", ".save_pretrained("]),
        ("model.pt", ["BertForMaskedLM"]),
        ("weights.pkl", ["BertForMaskedLM"]),
        ("tf_model.h5", ["transformers 4", "from_tf=True"]),
        ("flax_model.msgpack", ["transformers 4", "from_flax=True"]),
    ],
)
def test_pickles_are_refused_with_the_way_to_convert(tiny, tmp_path, name, recipe):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelError, match=f"only {name}") as caught:
        tiny.load(tmp_path)
    assert "AutoModel" in str(caught.value)
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    with pytest.raises(ModelError) as caught:
        tiny.load(tmp_path)
    for part in recipe:
        assert part in caught.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [*ModelConfig.model_fields, "model_type", "id2label", "position_embedding_type", "architectures"]
)
SHARED_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def words_of(call):
    try:
        call()
    except MLPruneError as error:
        return str(error)
    return ""


@SHARED_FOLDER
@given(changes=st.dictionaries(KEYS, JSON, max_size=3), layers=st.none() | JSON)
def test_any_json_loads_or_is_refused_in_our_words(tiny, saved, changes, layers):
    tiny.write_folder(saved, tiny.torch_tensors(), **changes)
    (saved / "pruning.json").unlink(missing_ok=True)
    if layers is not None:
        (saved / "pruning.json").write_text(json.dumps({"layers": layers}))
    assert len(words_of(lambda: tiny.load(saved))) < 4000


@SHARED_FOLDER
@given(cut=st.integers(0, 3000), data=st.binary(max_size=20))
def test_any_header_bytes_load_or_are_refused_in_our_words(tiny, saved, cut, data):
    original = saved / "original"
    if not original.exists():
        original.write_bytes((saved / "model.safetensors").read_bytes())
    whole = original.read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:cut] + data + whole[cut + len(data) :])
    words_of(lambda: tiny.load(saved)).encode()
