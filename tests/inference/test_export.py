"""Exported models answer what the original does: a dense Hugging Face folder, a function, an ONNX file, without us."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.export
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tokenizers import Tokenizer
from typer.testing import CliRunner

from mlprune_jax.cli import app
from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.errors import ConfigError, MLPruneError
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.export import FACTS, FUNCTION, GRAPH, export_function, export_model
from mlprune_jax.inference.onnx_graph import INPUTS, build_graph
from mlprune_jax.inference.runtime import Served
from mlprune_jax.inference.service import load
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.model_folder import PRUNING, STAGING
from mlprune_jax.models.pretrained import save_pretrained
from tests.documents import examples, execute
from tests.inference.conftest import CONFIG, batch, close, masked, plain_logits, with_mask

LABELS = ("bad", "good")
OUTPUTS = {"classification": 3, "regression": 1, "span": 2}


@pytest.fixture(scope="module")
def model():
    config = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)})
    return masked(num_labels=2, config=config)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = write_demo(tmp_path_factory.mktemp("model"), train_size=1, dev_size=1)
    task = {"mlprune": {"task": {"task": "demo", "max_length": 16, "length_buckets": [8, 16]}}}
    save_pretrained(path, model.config, model.params, kind="classification", labels=LABELS, extra_config=task)
    save_masks(path, model.masks)
    return path


@pytest.fixture(scope="module")
def wanted(model):
    return plain_logits(model.config, model.params, "classification", batch())


def test_a_hugging_face_folder_is_dense_and_answers_the_same(folder, wanted, tmp_path):
    told = export_model(folder, tmp_path / "hf", "hf")
    assert not (tmp_path / "hf" / PRUNING).exists()
    assert told["bytes"] == sum(file.stat().st_size for file in (tmp_path / "hf").iterdir())
    found, original = load(tmp_path / "hf"), load(folder)
    assert found.served.config.layers == ()
    assert found.served.masks is None
    assert (found.labels, found.task) == (original.labels, original.task)
    assert len(found.tokenizer) == len(original.tokenizer)
    close(plain_logits(found.served.config, found.served.params, "classification", batch()), wanted)


@pytest.mark.parametrize("tiles", [True, False], ids=["tiles", "no tiles"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_function_takes_any_batch_and_length(kind, tiles):
    model = masked(kind, OUTPUTS[kind])
    exported = export_function(Served(model.config, model.params, model.masks if tiles else None, kind))
    function = jax.export.deserialize(exported.serialize())
    for rows, length in ((3, 12), (1, 5)):
        inputs = batch(rows, length)
        found, wanted = function.call(*with_mask(inputs)), plain_logits(model.config, model.params, kind, inputs)
        assert found.shape == wanted.shape
        close(found, wanted)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_graph_takes_any_batch_and_length(kind):
    model = masked(kind, OUTPUTS[kind])
    params, config = assemble(model.params, model.masks, model.config, "float32", pack=False)
    graph = build_graph(params, config, kind)
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ir_version == 9  # the oldest with these operators, whatever onnx is installed
    run = ReferenceEvaluator(graph).run
    for rows, length in ((3, 12), (1, 5)):
        inputs = batch(rows, length)
        found, wanted = run(None, feed(inputs))[0], plain_logits(model.config, model.params, kind, inputs)
        assert found.shape == wanted.shape
        close(found, wanted)


def test_a_graph_knows_both_gelus_and_the_epsilon(model):
    for change in ({"hidden_act": "gelu"}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 0.1}):
        config = model.config.model_copy(update=change)
        params, config = assemble(model.params, None, config, "float32")
        found = ReferenceEvaluator(build_graph(params, config, "classification")).run(None, feed(batch()))[0]
        close(found, plain_logits(config, model.params, "classification", batch()))


def test_a_graph_is_a_file(folder, wanted, tmp_path):
    export_model(folder, tmp_path / "out", "onnx")
    close(ReferenceEvaluator(str(tmp_path / "out" / GRAPH)).run(None, feed(batch()))[0], wanted)
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert (facts["file"], facts["kind"], facts["labels"]) == (GRAPH, "classification", list(LABELS))
    assert (facts["max_length"], facts["positions"]) == (16, 32)  # where the run cut its texts; the most it can read


def test_a_model_of_another_origin_is_cut_as_load_cuts_it(model, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "model")
    save_pretrained(tmp_path / "model", model.config, model.params, kind="classification")
    monkeypatch.setattr("mlprune_jax.inference.service.LENGTHS", (8, 24))
    export_model(tmp_path / "model", tmp_path / "out", "stablehlo")
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert (facts["max_length"], facts["positions"]) == (24, 32)


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
def test_texts_are_answered_as_the_document_says(folder, tmp_path, monkeypatch, to):
    """Also longer ones, whatever the tokenizer's own file says: found by a newcomer."""
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=ReferenceEvaluator))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "model")
    tokenizer = Tokenizer.from_file("model/tokenizer.json")
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=24)
    tokenizer.save("model/tokenizer.json")
    export_model("model", "out", to)
    texts = ["its plot was not very good", "good " * 40]
    *_, tokenizing, onnx_runtime, function = examples("docs/inference.md")
    done = execute(tokenizing, texts=texts)
    assert [len(row) for row in done["inputs"]["input_ids"]] == [16, 16]
    done = execute(onnx_runtime if to == "onnx" else function, **done)
    predictions = load("model").compile(batch_sizes=[2], dtype="float32")(texts)
    wanted = np.log([prediction.probabilities for prediction in predictions])
    close(jax.nn.log_softmax(done["logits"]), wanted)
    if to == "onnx":
        assert done["classes"] == [prediction.label for prediction in predictions]


def feed(inputs):
    """A batch by the names of ONNX's inputs."""
    return {name: np.asarray(value, np.int64) for name, value in zip(INPUTS, with_mask(inputs), strict=True)}


def test_a_function_lies_beside_what_its_caller_needs(folder, wanted, tmp_path):
    export_model(folder, tmp_path / "out", "stablehlo", dtype="bfloat16")
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert facts["inputs"] == "int32 input_ids, attention_mask, token_type_ids"
    assert facts["labels"] == list(LABELS)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    function = jax.export.deserialize(bytearray((tmp_path / "out" / FUNCTION).read_bytes()))
    assert set(facts["platforms"]) >= {"cpu", "cuda", "tpu"}
    found = np.asarray(function.call(*with_mask(batch())))
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()  # bfloat16, and not float32


def test_a_function_refuses_lengths_above_the_positions(model):
    function = export_function(Served(model.config, model.params, None, "classification"))
    with pytest.raises(ValueError, match="length <= 32"):
        function.call(*with_mask(batch(1, 33)))


@pytest.mark.parametrize(
    ("to", "dtype", "words"),
    [
        ("tflite", "float32", "hf or stablehlo or onnx"),
        ("hf", "bfloat16", "float32"),
        ("onnx", "float16", "float32"),
        ("stablehlo", "int8", "bfloat16"),
    ],
)
def test_what_there_is_not_is_refused(folder, tmp_path, to, dtype, words):
    with pytest.raises(ConfigError, match=words):
        export_model(folder, tmp_path / "out", to, dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_onnx_is_asked_for_where_it_is_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mlprune_jax.inference.export.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package onnx"):
        export_model(folder, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["hf", "stablehlo"])
def test_a_failure_leaves_nothing_behind(folder, tmp_path, monkeypatch, to):
    """Found by review: half a file stayed, and stood in the way of the next try."""

    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("mlprune_jax.models.tokenizer_files.shutil.copyfile", full)
        with pytest.raises(MLPruneError, match=r"cannot write .*: no space left"):
            export_model(folder, tmp_path / "out", to)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(MLPruneError, match=r"cannot write .*: no space left"):
            export_model(folder, tmp_path / "new" / "deep" / "out", to)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "out").mkdir()
        with pytest.raises(MLPruneError, match=r"cannot write .*: no space left"):
            export_model(folder, tmp_path / "out", to)
        assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / STAGING).mkdir()  # as a killed export leaves it
    export_model(folder, tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "tokenizer.json" in os.listdir(tmp_path / "out")
    assert STAGING not in os.listdir(tmp_path / "out")


def test_an_empty_folder_is_filled_and_stays_the_same(folder, tmp_path, monkeypatch):
    """Found by review: another one took its place, which a mount point does not let happen and a shell loses."""
    (tmp_path / "out").mkdir(mode=0o700)
    before = (tmp_path / "out").stat()
    monkeypatch.chdir(tmp_path / "out")
    export_model(folder, ".", "hf")
    assert "config.json" in os.listdir(".")
    after = (tmp_path / "out").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_tilde_is_a_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    told = export_model(f"~/{folder.name}", tmp_path / "hf", "hf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export_model("~/hf", "~/again", "hf")["output"] == str(tmp_path / "again")
    assert told["bytes"] == sum(file.stat().st_size for file in (tmp_path / "again").iterdir())


def test_the_command_never_writes_over_files(folder, tmp_path):
    command = ["export", str(folder), "--to", "hf", "--json", "-o", str(tmp_path / "hf")]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["format"] == "hf"
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "no empty folder" in again.stderr
