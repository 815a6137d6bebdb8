"""Saving a model folder and loading it again; what a failed save leaves behind."""

from __future__ import annotations

import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from mlprune_jax.errors import ConfigError, ModelError, NumericalError
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.model_folder import MASKS
from mlprune_jax.models.pretrained import expected_shapes, save_pretrained
from mlprune_jax.models.tasks import TaskModel, init_params


@pytest.mark.parametrize("kind", ["classification", "regression", "span"])
@pytest.mark.parametrize("size", ["DENSE", "SHRUNK"])
@pytest.mark.parametrize("max_shard_bytes", [None, 700, 1], ids=["single", "shards", "one_each"])
def test_round_trip_is_bit_exact(tiny, tmp_path, size, kind, max_shard_bytes):
    config = getattr(tiny, size)
    params = tiny.make_params(config, kind)
    labels = tiny.LABELS[kind]
    save_pretrained(tmp_path / "m", config, params, kind=kind, labels=labels, max_shard_bytes=max_shard_bytes)
    loaded = tiny.load(tmp_path / "m", kind=kind)
    tiny.assert_same(loaded.params, params)
    assert loaded.config == config
    assert loaded[2:] == (tiny.SIZES[kind], labels, False)
    assert (tmp_path / "m" / "pruning.json").exists() == (config is tiny.SHRUNK)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (max_shard_bytes is not None)


@pytest.mark.parametrize("kind", ["classification", "regression", "span"])
@pytest.mark.parametrize("size", ["DENSE", "SHRUNK"])
def test_shapes_are_those_of_the_model(tiny, size, kind):
    config = getattr(tiny, size)
    model = TaskModel(config, kind, tiny.SIZES[kind])
    params = jax.eval_shape(lambda: init_params(model, 0))
    found = {path: leaf.shape for path, leaf in tiny.leaves(params)}
    assert found == expected_shapes(config, num_labels=tiny.SIZES[kind], kind=kind)


def test_jax_and_half_precision_parameters_are_saved_as_float32(tiny, tmp_path):
    params = tiny.make_params()
    params["head"] = {name: jnp.asarray(value, jnp.bfloat16) for name, value in params["head"].items()}
    save_pretrained(tmp_path / "m", tiny.DENSE, params, kind="classification")
    params["head"] = {name: np.asarray(value, np.float32) for name, value in params["head"].items()}
    tiny.assert_same(tiny.load(tmp_path / "m").params, params)


@pytest.mark.parametrize(
    ("kind", "architecture", "expected"),
    [
        ("classification", "BertForSequenceClassification", {"label2id": {"no": 0, "maybe": 1, "yes": 2}}),
        ("regression", "BertForSequenceClassification", {"problem_type": "regression", "id2label": {"0": "LABEL_0"}}),
        ("span", "BertForQuestionAnswering", {}),
    ],
)
def test_config_json_speaks_hugging_face(tiny, tmp_path, kind, architecture, expected):
    extra = {"finetuning_task": "mnli", "model_type": "gpt2"}
    save_pretrained(
        tmp_path, tiny.DENSE, tiny.make_params(kind=kind), kind=kind, labels=tiny.LABELS[kind], extra_config=extra
    )
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"architectures": [architecture], "dtype": "float32", "finetuning_task": "mnli", **expected}
    assert {**config, **expected} == config
    assert {**config, **tiny.DENSE.model_dump(exclude={"layers"})} == config
    assert "layers" not in config
    assert config["model_type"] == "bert"
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_files_have_torch_names_and_layout(tiny, saved):
    stored = load_file(saved / "model.safetensors")
    assert {name: array.shape for name, array in stored.items()} == {
        name: array.shape for name, array in tiny.torch_tensors().items()
    }
    kernel = tiny.make_params()["bert"]["encoder"]["layer_1"]["ffn"]["intermediate"]["kernel"]
    np.testing.assert_array_equal(stored["bert.encoder.layer.1.intermediate.dense.weight"], kernel.T)


def test_pruning_json_keeps_the_layers_and_what_is_given(tiny, tmp_path):
    pruning = {"blocks": {"shape": [32, 32]}, "layers": "replaced"}
    save_pretrained(tmp_path, tiny.SHRUNK, tiny.make_params(tiny.SHRUNK), kind="classification", pruning=pruning)
    stored = json.loads((tmp_path / "pruning.json").read_text())
    assert stored["blocks"] == {"shape": [32, 32]}
    assert stored["layers"][1] == {"heads": None, "attention_output": None, "ffn": [0, 6], "ffn_output": None}
    save_pretrained(tmp_path, tiny.DENSE, tiny.make_params(), kind="classification", pruning={"blocks": None})
    assert json.loads((tmp_path / "pruning.json").read_text()) == {"blocks": None, "layers": []}
    assert tiny.load(tmp_path).config == tiny.DENSE


def test_saving_replaces_a_model_and_leaves_other_files(tiny, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    save_pretrained(tmp_path, tiny.SHRUNK, tiny.make_params(tiny.SHRUNK), kind="classification", max_shard_bytes=500)
    (tmp_path / ".saving").mkdir()  # as a killed run leaves it
    (tmp_path / ".saving" / "config.json").write_text("half")
    save_pretrained(tmp_path, tiny.DENSE, tiny.make_params(), kind="classification")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert tiny.load(tmp_path).config == tiny.DENSE


def test_files_get_the_users_permissions(saved):
    modes = {stat.S_IMODE((saved / name).stat().st_mode) for name in os.listdir(saved)}
    (saved / "other").touch()
    assert modes == {stat.S_IMODE((saved / "other").stat().st_mode)}


def test_masks_get_the_users_permissions(tmp_path):
    """Found by review: the owner alone could read them, and another account's service was told of damage."""
    save_masks(tmp_path, {"bert": {"kernel": np.ones((2, 2), bool)}})
    (tmp_path / "other").touch()
    assert (tmp_path / MASKS).stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("fails", ["model.safetensors", "config.json"])
def test_a_failed_write_leaves_the_old_model(tiny, saved, monkeypatch, fails):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    owner = "safetensors_io.save_file" if fails == "model.safetensors" else "pretrained.write_model_json"
    monkeypatch.setattr(f"mlprune_jax.models.{owner}", full)
    with pytest.raises(ModelError, match="No space left"):
        save_pretrained(saved, tiny.SHRUNK, tiny.make_params(tiny.SHRUNK), kind="classification")
    monkeypatch.undo()
    tiny.assert_same(tiny.load(saved).params, tiny.make_params())
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]


def test_a_failed_write_leaves_no_new_folders(tiny, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlprune_jax.models.safetensors_io.save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        save_pretrained(tmp_path / "new" / "model", tiny.DENSE, tiny.make_params(), kind="classification")
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_a_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pretrained("~/model", tiny.DENSE, tiny.make_params(), kind="classification")
    assert (tmp_path / "model" / "config.json").is_file()
    tiny.assert_same(tiny.load("~/model").params, tiny.make_params())


def test_killed_between_renames_it_is_no_model(tiny, saved, monkeypatch):
    calls = []

    def replace_once(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr("mlprune_jax.models.model_folder.os.replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(saved, tiny.SHRUNK, tiny.make_params(tiny.SHRUNK), kind="classification")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        tiny.load(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_never_overwrites_good_weights(tiny, saved, value):
    params = tiny.make_params()
    params["bert"]["encoder"]["layer_0"]["ffn"]["output"]["kernel"][1, 2] = value
    with pytest.raises(NumericalError, match=r"layer\.0\.output\.dense\.weight"):
        save_pretrained(saved, tiny.DENSE, params, kind="classification")
    tiny.assert_same(tiny.load(saved).params, tiny.make_params())


def test_parameters_that_do_not_fit_are_listed(tiny, tmp_path):
    params = tiny.make_params()
    del params["bert"]["pooler"]["bias"]
    params["head"]["extra"] = np.zeros(3)
    params["bert"]["embeddings"]["word"]["embedding"] = np.zeros((4, 8))
    with pytest.raises(ModelError, match="do not fit") as caught:
        save_pretrained(tmp_path / "m", tiny.DENSE, params, kind="classification")
    for part in ("bert/pooler/bias missing", "head/extra unexpected", "word/embedding (4, 8) but (11, 8)"):
        assert part in str(caught.value)
    with pytest.raises(ModelError, match=r"head/bias \(3,\) but \(1,\)"):
        save_pretrained(tmp_path / "m", tiny.DENSE, tiny.make_params(), kind="regression")
    with pytest.raises(ModelError, match="head/kernel missing"):
        save_pretrained(tmp_path / "m", tiny.DENSE, {"bert": params["bert"]}, kind="classification")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "a")])
def test_labels_must_fit_the_head(tiny, tmp_path, labels):
    with pytest.raises(ConfigError, match="3 different names"):
        save_pretrained(tmp_path, tiny.DENSE, tiny.make_params(), kind="classification", labels=labels)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        save_pretrained(tmp_path, tiny.DENSE, tiny.make_params(), kind="classification", max_shard_bytes=0)


@pytest.mark.parametrize("kind", ["classification", "regression", "span"])
def test_a_saved_dense_model_loads_in_torch(tiny, tmp_path, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cls = transformers.BertForQuestionAnswering if kind == "span" else transformers.BertForSequenceClassification
    params, labels = tiny.make_params(kind=kind), tiny.LABELS[kind]
    save_pretrained(tmp_path / "ours", tiny.DENSE, params, kind=kind, labels=labels, max_shard_bytes=2000)
    model, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert model.config.num_labels == tiny.SIZES[kind]
    assert model.config.problem_type == ("regression" if kind == "regression" else None)
    model.save_pretrained(tmp_path / "theirs")
    again = tiny.load(tmp_path / "theirs", kind=kind)
    tiny.assert_same(again.params, params)
    assert (again.config, again.labels) == (tiny.DENSE, labels)


def test_torch_refuses_a_shrunk_model_instead_of_inventing_weights(tiny, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    save_pretrained(tmp_path, tiny.SHRUNK, tiny.make_params(tiny.SHRUNK), kind="classification")
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched sizes|ignore_mismatched_sizes"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path)
