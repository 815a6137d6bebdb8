"""A RoBERTa goes through the whole pipeline, and what is left of it is a BERT with a RoBERTa's tokenizer."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlprune_jax import pipeline
from mlprune_jax.inference.export import export_model
from mlprune_jax.inference.service import load
from mlprune_jax.models.names import tensor_table
from mlprune_jax.models.tasks import TaskModel, init_params
from tests.byte_pairs import VOCAB_SIZE, write_byte_pairs
from tests.pipeline.conftest import GEOMETRY


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A pre-trained one, with as many positions as `GEOMETRY`."""
    folder = write_byte_pairs(tmp_path_factory.mktemp("roberta"))
    config = GEOMETRY.model_copy(update={"vocab_size": VOCAB_SIZE, "type_vocab_size": 1})
    params = jax.device_get(init_params(TaskModel(config, "classification", 2), 0))
    tensors = {}
    for entry in tensor_table(config, num_labels=2, kind="classification"):
        leaf = params
        for key in entry.path:
            leaf = leaf[key]
        if entry.name.startswith("bert.") and "pooler" not in entry.name:
            array = np.ascontiguousarray(leaf.T if entry.transposed else leaf)
            tensors[entry.name.replace("bert.", "roberta.")] = array
    name = "roberta.embeddings.position_embeddings.weight"
    tensors[name] = np.concatenate([np.zeros((2, 32), np.float32), tensors[name]])
    save_file(tensors, folder / "model.safetensors")
    told = config.model_dump(exclude={"layers"}) | {"model_type": "roberta", "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(told | {"max_position_embeddings": 34}))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """RTE's layout."""
    folder = tmp_path_factory.mktemp("rte")
    labels = ("entailment", "not_entailment")
    rows = [f"{i}\ta{'bc'[i % 2]} {i}\tit is {'b' if i % 2 else 'c'}\t{labels[i % 2]}" for i in range(32)]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")
    return folder


def config(tiny, model, data):
    prune = {"density": 0.5, "heads_rows": tiny.settings["prune"]["heads_rows"], "blocks": {"enabled": False}}
    return tiny.config(model=str(model), data=str(data), task="rte", prune=prune)


def test_a_roberta_is_pruned_and_serves_pairs(tiny, roberta, pairs, tmp_path):
    summary = pipeline.run(config(tiny, roberta, pairs), tmp_path / "run", quiet=True)
    assert summary["final"]["density"]["encoder"] <= 0.5
    loaded = load(tmp_path / "run")
    assert type(loaded.tokenizer).__name__ == "RobertaTokenizer"
    assert loaded.served.config.max_position_embeddings == 32
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer("a", "b")["input_ids"]) == [
        *("<s>", "a", "</s>"),
        *("</s>", "b", "</s>"),
    ]
    texts = [("ab 0", "it is c"), ("ac 1", "it is b")]
    answers = loaded.compile(batch_sizes=[2])(texts)
    assert {answer.label for answer in answers} <= {"entailment", "not_entailment"}
    export_model(tmp_path / "run", tmp_path / "hf", "hf")
    again = load(tmp_path / "hf").compile(batch_sizes=[2])(texts)
    for one, other in zip(answers, again, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
