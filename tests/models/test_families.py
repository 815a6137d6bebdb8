"""Encoders of other families become BERTs that hold the same numbers."""

from __future__ import annotations

import itertools
import json

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from mlprune_jax.errors import ModelError
from mlprune_jax.inference.stored import stored_kind
from mlprune_jax.models.families import FAMILIES
from mlprune_jax.models.pretrained import load_pretrained
from mlprune_jax.models.tasks import TaskModel, predict_logits
from mlprune_jax.models.tokenizer_files import copy_tokenizer

ROBERTAS = ("roberta", "xlm-roberta", "camembert")


def as_roberta(tensors, prefix="roberta."):
    """A BERT's tensors as a RoBERTa has them: two rows before the first position, and a head of two layers."""
    renamed = {}
    for name, array in tensors.items():
        name = name.replace("bert.pooler.dense.", "classifier.dense.") if "pooler" in name else name
        name = f"classifier.out_proj.{name.split('.')[1]}" if name in ("classifier.weight", "classifier.bias") else name
        renamed[name.replace("bert.", prefix)] = array
    positions = f"{prefix}embeddings.position_embeddings.weight"
    before = np.full((2, 8), 7, renamed[positions].dtype)
    return renamed | {positions: np.concatenate([before, renamed[positions]])}


def write_roberta(tiny, folder, tensors, model_type="roberta", **changes):
    changes = {"model_type": model_type, "pad_token_id": 1, "max_position_embeddings": 8, **changes}
    return tiny.write_folder(folder, tensors, **changes)


@pytest.mark.parametrize("model_type", ROBERTAS)
@pytest.mark.parametrize(("kind", "head", "labels"), [("classification", "classifier", 3), ("span", "qa_outputs", 2)])
def test_a_roberta_is_a_bert_whose_positions_begin_later(tiny, tmp_path, model_type, kind, head, labels):
    tensors = tiny.torch_tensors(head=head, labels=labels, pooler=kind != "span")
    bert = tiny.load(tiny.write_folder(tmp_path / "bert", tensors, pad_token_id=1), labels, kind)
    folder = write_roberta(tiny, tmp_path / "roberta", as_roberta(tensors), model_type)
    found = tiny.load(folder, labels, kind)
    assert (found.config, found.fresh_head) == (bert.config, False)
    tiny.assert_same(found.params, bert.params)


SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 12, "pad_token_id": 1}
ROBERTA = SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
THEIRS = {
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "DistilBert": {FAMILIES["distilbert"].settings.get(name, name): value for name, value in SIZES.items()},
    "Electra": SIZES | {"embedding_size": 16},
}
WHOLE = [
    *itertools.product(THEIRS, ["QuestionAnswering"]),
    *((name, "SequenceClassification") for name in [*THEIRS][:3]),
]


@pytest.mark.parametrize(("family", "kind"), WHOLE)
def test_torch_answers_the_same(tiny, tmp_path, family, kind):
    """Padding rows included, of which torch counts positions from what is no padding."""
    torch = pytest.importorskip("torch")
    config = getattr(transformers, f"{family}Config")(**THEIRS[family], initializer_range=0.5, num_labels=2)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}For{kind}")(config).eval()
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, num_labels=None, kind=stored_kind(tmp_path))
    ids = np.random.default_rng(0).integers(4, 50, (3, 10)).astype(np.int32)
    mask = (np.arange(10) < np.array([[10], [7], [2]])).astype(np.int32)
    ids[mask == 0] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    model = TaskModel(loaded.config, stored_kind(tmp_path), 2)
    ours = np.asarray(jax.jit(predict_logits, static_argnums=0)(model, loaded.params, batch))
    with torch.no_grad():
        out = theirs(torch.tensor(ids).long(), torch.tensor(mask))
    if kind == "QuestionAnswering":
        wanted = np.stack([out.start_logits.numpy(), out.end_logits.numpy()], -1)
        ours, wanted = ours[mask > 0], wanted[mask > 0]
    else:
        wanted = out.logits.numpy()
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(ours, wanted, atol=2e-5)


def test_half_precision_is_cut_alike(tiny, tmp_path):
    tensors = {name: array.astype(np.float16) for name, array in tiny.torch_tensors().items()}
    bert = tiny.load(tiny.write_folder(tmp_path / "bert", tensors))
    tiny.assert_same(tiny.load(write_roberta(tiny, tmp_path / "roberta", as_roberta(tensors))).params, bert.params)


@pytest.mark.parametrize("prefix", ["roberta.", ""])
def test_a_pretrained_roberta_has_no_head_and_no_pooler_of_use(tiny, tmp_path, prefix, caplog):
    """As transformers takes it: the layer that answers for the first token begins anew."""
    tensors = tiny.torch_tensors(head=None, pooler=False)
    pooler = {f"{prefix}pooler.dense.weight": np.ones((8, 8), np.float32)}
    masked = {"lm_head.bias": np.ones(11, np.float32), f"{prefix}embeddings.position_ids": np.arange(8)[None]}
    folder = write_roberta(tiny, tmp_path / "roberta", as_roberta(tensors, prefix) | pooler | masked)
    found = tiny.load(folder, 3)
    assert found.fresh_head
    tiny.assert_same(found.params, tiny.load(tiny.write_folder(tmp_path / "bert", tensors), 3).params)
    assert "no bert.pooler.dense.bias, bert.pooler.dense.weight" in caplog.text


def test_a_classifier_of_tokens_is_left_out_of_a_roberta_too(tiny, tmp_path):
    tensors = as_roberta(tiny.torch_tensors(head=None, pooler=False)) | {"classifier.weight": np.ones((3, 8), "f")}
    folder = write_roberta(tiny, tmp_path, tensors, architectures=["RobertaForTokenClassification"])
    assert tiny.load(folder, 3).fresh_head


def test_what_a_roberta_is_for(tiny, tmp_path):
    tensors = as_roberta(tiny.torch_tensors(labels=1))
    assert stored_kind(write_roberta(tiny, tmp_path, tensors)) == "regression"
    assert stored_kind(write_roberta(tiny, tmp_path, as_roberta(tiny.torch_tensors()))) == "classification"
    answers = as_roberta(tiny.torch_tensors(head="qa_outputs", labels=2, pooler=False))
    assert stored_kind(write_roberta(tiny, tmp_path, answers, architectures=["RobertaForQuestionAnswering"])) == "span"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2, .* behind pad_token_id's 1: none is left"),
        ({"max_position_embeddings": 6}, r"position_embeddings\.weight \(6, 8\) but \(4, 8\) by the config"),
        ({"model_type": "deberta-v2"}, f"only {', '.join(FAMILIES)} are supported"),
        ({"model_type": ["roberta"]}, r"model_type is \['roberta'\]"),
    ],
)
def test_what_is_no_roberta_is_refused(tiny, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        tiny.load(write_roberta(tiny, tmp_path, as_roberta(tiny.torch_tensors()), **changes))


def test_positions_begin_behind_the_padding_token_that_the_config_does_not_name(tiny, tmp_path):
    tensors = tiny.torch_tensors()
    folder = write_roberta(tiny, tmp_path, as_roberta(tensors), pad_token_id=None)
    positions = tiny.load(folder).params["bert"]["embeddings"]["position"]["embedding"]
    np.testing.assert_array_equal(positions, tensors["bert.embeddings.position_embeddings.weight"])


DISTILBERT = {
    "bert.encoder.layer.": "distilbert.transformer.layer.",
    "bert.embeddings.": "distilbert.embeddings.",
    "attention.self.query.": "attention.q_lin.",
    "attention.self.key.": "attention.k_lin.",
    "attention.self.value.": "attention.v_lin.",
    "attention.output.dense.": "attention.out_lin.",
    "attention.output.LayerNorm.": "sa_layer_norm.",
    "intermediate.dense.": "ffn.lin1.",
    ".output.dense.": ".ffn.lin2.",
    ".output.LayerNorm.": ".output_layer_norm.",
}
DISTIL_SIZES = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "activation": "gelu_new", "dropout": 0.2}
DISTIL_SIZES |= {"attention_dropout": 0.3, "vocab_size": 11, "max_position_embeddings": 6, "initializer_range": 0.05}
TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"


def write_distilbert(folder, tensors, prefix="distilbert.", **changes):
    """A BERT's tensors without token types, named as a DistilBERT's."""
    renamed = {}
    for name, array in tensors.items():
        if name != TOKEN_TYPES:
            for own, theirs in DISTILBERT.items():
                name = name.replace(own, theirs)
            renamed[name.replace("distilbert.", prefix)] = array
    folder.mkdir()
    save_file(renamed, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "distilbert", **DISTIL_SIZES, **changes}))
    return folder


@pytest.mark.parametrize("prefix", ["distilbert.", ""])
def test_a_distilbert_is_a_bert_without_token_types(tiny, tmp_path, prefix):
    tensors = tiny.torch_tensors(head="qa_outputs", labels=2, pooler=False)
    tensors[TOKEN_TYPES][:] = 0
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    bert = tiny.load(tiny.write_folder(tmp_path / "bert", tensors, hidden_act="gelu_new", **rates), kind="span")
    found = tiny.load(write_distilbert(tmp_path / "distilbert", tensors, prefix), kind="span")
    assert (found.config, found.fresh_head) == (bert.config, False)
    tiny.assert_same(found.params, bert.params)


def test_an_electra_is_a_bert(tiny, tmp_path):
    tensors = tiny.torch_tensors(head="qa_outputs", labels=2, pooler=False)
    bert = tiny.load(tiny.write_folder(tmp_path / "bert", tensors), kind="span")
    named = {name.replace("bert.", "electra."): array for name, array in tensors.items()}
    found = tiny.load(
        tiny.write_folder(tmp_path / "electra", named, model_type="electra", embedding_size=8), kind="span"
    )
    assert (found.config, found.fresh_head) == (bert.config, False)
    tiny.assert_same(found.params, bert.params)


@pytest.mark.parametrize("model_type", ["distilbert", "electra"])
def test_a_classifier_without_a_tanh_is_left_out_and_said_so(tiny, tmp_path, model_type, caplog):
    tensors = tiny.torch_tensors(head=None, pooler=False)
    head = {
        "distilbert": {"pre_classifier.weight": np.ones((8, 8), "f"), "classifier.weight": np.ones((3, 8), "f")},
        "electra": {
            "classifier.dense.weight": np.ones((8, 8), "f"),
            "classifier.out_proj.weight": np.ones((3, 8), "f"),
        },
    }[model_type]
    if model_type == "distilbert":
        folder = write_distilbert(tmp_path / "model", tensors | head)
    else:
        tensors = {name.replace("bert.", "electra."): array for name, array in tensors.items()}
        folder = tiny.write_folder(tmp_path / "model", tensors | head, model_type=model_type, embedding_size=8)
    assert stored_kind(folder) == "classification"
    assert tiny.load(folder, 3).fresh_head
    assert "its classifier computes something else than a BERT's and is left out" in caplog.text
    with pytest.raises(ModelError, match="no trained head for classification"):
        tiny.load(folder)


@pytest.mark.parametrize("head", ["vocab_transform.bias", "vocab_layer_norm.weight", "vocab_projector.bias"])
def test_what_a_distilbert_was_trained_by_is_left_out(tiny, tmp_path, head, caplog):
    tensors = tiny.torch_tensors(head=None, pooler=False) | {head: np.ones(8, np.float32)}
    assert tiny.load(write_distilbert(tmp_path / "model", tensors), 3).fresh_head
    assert "computes something else" not in caplog.text


@pytest.mark.parametrize(("changes", "width"), [({"embedding_size": 4}, 4), ({}, 128)])
def test_embeddings_of_another_width_are_refused(tiny, tmp_path, changes, width):
    folder = tiny.write_folder(tmp_path, tiny.torch_tensors(), model_type="electra", **changes)
    with pytest.raises(ModelError, match=f"embedding_size is {width}, only hidden_size's 8 is supported"):
        tiny.load(folder, 3)


def test_a_bert_has_one_width_whatever_its_config_says_besides(tiny, tmp_path):
    """Found by review: transformers reads no embedding_size of a BERT."""
    assert not tiny.load(tiny.write_folder(tmp_path, tiny.torch_tensors(), embedding_size=4), 3).fresh_head


def test_a_summary_of_choices_is_left_out_of_an_electra(tiny, tmp_path):
    tensors = {name.replace("bert.", "electra."): a for name, a in tiny.torch_tensors(head=None, pooler=False).items()}
    summary = {"sequence_summary.summary.weight": np.ones((8, 8), "f"), "classifier.weight": np.ones((1, 8), "f")}
    folder = tiny.write_folder(tmp_path, tensors | summary, model_type="electra", embedding_size=8)
    assert tiny.load(folder, 3).fresh_head


def test_a_distilbert_may_say_things_in_berts_words_too(tiny, tmp_path):
    """Found by review: a number of heads that was not read would have been 12, with the same shapes."""
    tensors = tiny.torch_tensors(head=None, pooler=False)
    folder = write_distilbert(tmp_path / "model", tensors, n_heads=None, num_attention_heads=4)
    assert tiny.load(folder, 3).config.num_attention_heads == 4
    both = write_distilbert(tmp_path / "both", tensors, num_attention_heads=4)
    assert tiny.load(both, 3).config.num_attention_heads == 2


def test_a_distilbert_has_six_layers_where_it_does_not_say(tiny, tmp_path):
    folder = write_distilbert(tmp_path / "model", tiny.torch_tensors(head=None, pooler=False), n_layers=None)
    with pytest.raises(ModelError, match=r"64 missing: bert\.encoder\.layer\.2"):
        tiny.load(folder, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "activation: .*gelu"),
        ({"n_layers": 3}, "16 missing: bert.encoder.layer.2.attention.self.query.weight"),
    ],
)
def test_what_is_no_distilbert_is_refused(tiny, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        tiny.load(write_distilbert(tmp_path / "model", tiny.torch_tensors(head=None, pooler=False), **changes), 3)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("settings", [None, {"model_max_length": 8}, {"tokenizer_class": "PreTrainedTokenizerFast"}])
def test_a_tokenizer_keeps_its_class_beside_a_bert(tiny, tmp_path, model_type, settings):
    source = tiny.write_folder(tmp_path / "source", tiny.torch_tensors(), model_type=model_type, embedding_size=8)
    (source / "tokenizer.json").write_text("{}")
    if settings is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    target = tmp_path / "target"
    target.mkdir()
    copy_tokenizer(source, target)
    assert (target / "tokenizer.json").read_text() == "{}"
    found = target / "tokenizer_config.json"
    written = json.loads(found.read_text()) if found.is_file() else None
    own = {"tokenizer_class": FAMILIES[model_type].tokenizer} if model_type in ROBERTAS else {}
    if model_type == "distilbert":
        own = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    assert written == ((own | (settings or {})) or None)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": None}])
def test_a_tokenizers_class_may_stand_in_config_json(tiny, tmp_path, model_type, settings):
    """Found by review: a Korean RoBERTa's BertTokenizer became a RobertaTokenizer, and its texts unknown tokens."""
    told = {"model_type": model_type, "tokenizer_class": "BertTokenizer"}
    source = tiny.write_folder(tmp_path / "source", tiny.torch_tensors(), **told)
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    target = tmp_path / "target"
    target.mkdir()
    copy_tokenizer(source, target)
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"tokenizer_class": "BertTokenizer"}


@pytest.mark.parametrize("model_type", ROBERTAS)
def test_the_classes_of_tokenizers_are_transformers(model_type):
    assert hasattr(transformers, FAMILIES[model_type].tokenizer)
