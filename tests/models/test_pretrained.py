"""Loading checkpoints of other libraries: what lands where, and which are refused with which words."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from mlprune_jax.errors import ConfigError, ModelError
from mlprune_jax.models.pretrained import expected_shapes


def test_a_torch_checkpoint_lands_at_our_paths(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    loaded = tiny.load(tiny.write_folder(tmp_path, tensors))
    bert = loaded.params["bert"]
    layer = bert["encoder"]["layer_1"]
    pairs = {
        "bert.embeddings.token_type_embeddings.weight": bert["embeddings"]["token_type"]["embedding"],
        "bert.embeddings.LayerNorm.weight": bert["embeddings"]["norm"]["scale"],
        "bert.encoder.layer.1.attention.self.key.weight": layer["attention"]["key"]["kernel"].T,
        "bert.encoder.layer.1.attention.output.dense.weight": layer["attention"]["output"]["kernel"].T,
        "bert.encoder.layer.1.attention.output.LayerNorm.bias": layer["attention"]["norm"]["bias"],
        "bert.encoder.layer.1.intermediate.dense.weight": layer["ffn"]["intermediate"]["kernel"].T,
        "bert.encoder.layer.1.output.dense.weight": layer["ffn"]["output"]["kernel"].T,
        "bert.encoder.layer.1.output.LayerNorm.weight": layer["ffn"]["norm"]["scale"],
        "bert.pooler.dense.weight": bert["pooler"]["kernel"].T,
        "classifier.weight": loaded.params["head"]["kernel"].T,
    }
    for name, array in pairs.items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_widens_to_float32(tiny, tmp_path, dtype):
    tensors = {name: array.astype(dtype) for name, array in tiny.torch_tensors().items()}
    wide = {name: array.astype(np.float32) for name, array in tensors.items()}
    half = tiny.load(tiny.write_folder(tmp_path / "half", tensors))
    tiny.assert_same(half.params, tiny.load(tiny.write_folder(tmp_path / "wide", wide)).params)


def test_old_spellings_and_known_extras(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    expected = tiny.load(tiny.write_folder(tmp_path / "new", tensors)).params
    old = {}
    for name, array in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[name.removeprefix("bert.")] = array
    old["embeddings.position_ids"] = np.arange(6)[None]
    old["cls.predictions.bias"] = np.zeros(11, np.float32)
    old["qa_outputs.weight"] = np.zeros((2, 8), np.float32)
    tiny.assert_same(tiny.load(tiny.write_folder(tmp_path / "old", old)).params, expected)


@pytest.mark.parametrize("other", ["BertForTokenClassification", "BertForMultipleChoice"])
def test_a_classifier_of_something_else_is_left_out(tiny, tmp_path, caplog, other):
    """Found by review: a model of tokens' classes answered with the classes of texts."""
    folder = tiny.write_folder(tmp_path, tiny.torch_tensors(), architectures=[other])
    with caplog.at_level(logging.WARNING, "mlprune_jax"):
        assert tiny.load(folder, 3).fresh_head
    assert f"is a {other}: its classifier is left out" in caplog.text
    with pytest.raises(ModelError, match="no trained head"):
        tiny.load(folder)


def test_architectures_that_are_no_list_say_nothing(tiny, tmp_path):
    assert not tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors(), architectures=5)).fresh_head


def test_a_tensor_under_two_spellings_is_refused(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    tensors["pooler.dense.bias"] = np.zeros(8, np.float32)
    with pytest.raises(ModelError, match=r"twice, as .*pooler\.dense\.bias"):
        tiny.load(tiny.write_folder(tmp_path, tensors))


@pytest.mark.parametrize("pooler", [True, False])
def test_a_missing_head_is_fresh_seeded_and_said_so(tiny, tmp_path, caplog, pooler):
    folder = tiny.write_folder(tmp_path, tiny.torch_tensors(head=None, pooler=pooler))
    with caplog.at_level(logging.WARNING, "mlprune_jax"):
        loaded = tiny.load(folder, 5, seed=3)
    assert "classifier.weight: initialised from seed 3" in caplog.text.replace("bert.pooler.dense.weight, ", "")
    assert ("pooler" in caplog.text) == (not pooler)
    assert loaded[2:] == (5, None, True)
    kernel = loaded.params["head"]["kernel"]
    assert kernel.shape == (8, 5)
    assert kernel.dtype == np.float32
    assert 0.02 < kernel.std() < 0.1  # initializer_range 0.05, 40 draws
    assert not loaded.params["head"]["bias"].any()
    tiny.assert_same(loaded.params, tiny.load(folder, 5, seed=3).params)
    assert np.abs(kernel - tiny.load(folder, 5, seed=4).params["head"]["kernel"]).max() > 0
    with pytest.raises(ModelError, match="no trained head for classification"):
        tiny.load(folder)


def test_the_fresh_head_does_not_depend_on_the_pooler(tiny, tmp_path):
    tensors = tiny.torch_tensors(head=None)
    first = tiny.load(tiny.write_folder(tmp_path, tensors), 3)
    second = tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors(head=None, pooler=False)), 3)
    tiny.assert_same(first.params["head"], second.params["head"])


def test_a_stored_head_without_its_pooler_is_damage(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"missing: bert\.pooler\.dense\.weight, bert\.pooler\.dense\.bias"):
        tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors(pooler=False)))


def test_another_kinds_head_and_the_pooler_are_left_out_for_spans(tiny, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mlprune_jax"):
        loaded = tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors()), kind="span")
    assert "left out: " in caplog.text
    assert "classifier.weight" in caplog.text
    assert loaded[2:] == (2, None, True)
    assert "pooler" not in loaded.params["bert"]


def test_a_head_with_other_labels_is_refused(tiny, tmp_path):
    folder = tiny.write_folder(tmp_path, tiny.torch_tensors())
    with pytest.raises(ModelError, match="3 labels; 2 asked for"):
        tiny.load(folder, 2)
    with pytest.raises(ModelError, match="3 labels; 1 asked for"):
        tiny.load(folder, kind="regression")
    with pytest.raises(ConfigError, match="must be 1 for regression, got 3"):
        tiny.load(folder, 3, kind="regression")
    with pytest.raises(ConfigError, match="at least 1 for classification, got 0"):
        tiny.load(folder, 0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"1": "b", "0": "a", "2": "c"}, ("a", "b", "c")),
        (None, None),
        ({"0": "a", "1": "b"}, ModelError),
        ({"0": "a", "1": "b", "3": "c"}, ModelError),
        ({"0": "a", "1": "b", "2": 3}, ModelError),
        ({"0": "a", "1": "b", "2": "a"}, ModelError),  # answers by name would lose one
        (3, ModelError),
        (["a", "b", "c"], ModelError),
    ],
)
def test_labels_come_from_id2label(tiny, tmp_path, names, expected):
    folder = tiny.write_folder(tmp_path, tiny.torch_tensors(), id2label=names)
    if expected is ModelError:
        with pytest.raises(ModelError, match="id2label must give the 3 labels"):
            tiny.load(folder)
    else:
        assert tiny.load(folder).labels == expected


def test_every_fault_of_the_weights_is_listed(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    for name in [name for name in tensors if "layer.1." in name]:
        del tensors[name]
    tensors["classifier.weight"] = np.zeros((3, 9), np.float32)
    tensors["bert.encoder.layer.7.\x1b[31m"] = np.zeros(1, np.float32)
    tensors["bert.pooler.dense.bias"] = np.zeros(8, np.int32)
    with pytest.raises(ModelError) as caught:
        tiny.load(tiny.write_folder(tmp_path, tensors))
    for part in (
        "16 missing: bert.encoder.layer.1.attention.self.query.weight",
        "(16 in all)",
        r"1 unexpected: 'bert.encoder.layer.7.\x1b[31m'",
        "classifier.weight (3, 9) but (3, 8) by the config",
        "bert.pooler.dense.bias I32",
    ):
        assert part in str(caught.value)
    assert str(caught.value).count("bert.encoder.layer.1") == 10


def test_other_number_formats_are_named(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    tensors["classifier.bias"] = tensors["classifier.bias"].astype(np.float64)
    with pytest.raises(ModelError, match=r"1 not F32, F16, BF16: classifier.bias F64\n.*as float32"):
        tiny.load(tiny.write_folder(tmp_path, tensors))


def test_weights_of_names_that_nothing_knows(tiny, tmp_path):
    tensors = {f"model.{name}": tensor for name, tensor in tiny.torch_tensors().items()}
    with pytest.raises(ModelError, match=r"no name of a BERT's tensors.*: they hold model\.bert\.embeddings"):
        tiny.load(tiny.write_folder(tmp_path, tensors))


def test_stored_nan_is_refused(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    tensors["classifier.bias"][1] = np.nan
    with pytest.raises(ModelError, match=r"classifier\.bias .* NaN or infinity"):
        tiny.load(tiny.write_folder(tmp_path, tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deberta"}, "model_type is 'deberta'"),
        ({"model_type": None}, r'model_type is None.*\n.*Write "model_type": "bert" into it'),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "relu"}, "hidden_act: .*'relu'"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"hidden_size": -8}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 10**12}, "1000000000000 layers"),
        ({"vocab_size": 10**15}, r"\(11, 8\) but \(1000000000000000, 8\)"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ],
)
def test_configs_of_other_models_are_refused(tiny, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors(), **changes))


def test_null_and_unknown_keys_of_the_config_are_ignored(tiny, tmp_path):
    changes = {"pad_token_id": None, "position_embedding_type": None, "classifier_dropout": None, "new_key": [1]}
    assert tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors(), **changes)).config == tiny.DENSE


def test_the_real_checkpoint_loads(tiny, shared):
    folder = shared / "models" / "minilm-l6-h384"
    loaded = tiny.load(folder, 2)
    assert loaded.config.num_hidden_layers == 6
    assert loaded.fresh_head
    shapes = {path: array.shape for path, array in tiny.leaves(loaded.params)}
    assert shapes == expected_shapes(loaded.config, num_labels=2, kind="classification")
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = file.get_tensor("encoder.layer.5.output.dense.weight")
    kernel = loaded.params["bert"]["encoder"]["layer_5"]["ffn"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel, stored.astype(np.float32).T)
