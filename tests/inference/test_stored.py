"""What a finished model's folder says of itself."""

import json
import shutil

import numpy as np
import pytest

from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.errors import ConfigError, DataError, IntegrityError, ModelError
from mlprune_jax.inference.service import load
from mlprune_jax.inference.stored import model_folder
from mlprune_jax.manifest import MANIFEST, write_manifest
from mlprune_jax.models.pretrained import save_pretrained
from tests.inference.conftest import CONFIG, close, plain_logits, random_params


@pytest.fixture
def one_output(tmp_path):
    config = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)})
    path = write_demo(tmp_path, train_size=1, dev_size=1)
    save_pretrained(path, config, random_params(config, "regression", 1), kind="regression")
    return path


def rewritten(folder, **values):
    """The folder, with other values in its ``config.json``; ``None`` takes one out."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({name: v for name, v in config.items() if v is not None}))
    return folder


@pytest.mark.parametrize("names", [{}, {"id2label": None, "label2id": None}], ids=["named", "nameless"])
def test_one_output_is_a_regression(one_output, names):
    """As published cross-encoders have it, without a problem_type."""
    folder = rewritten(one_output, problem_type=None, architectures=None, **names)
    model = load(folder)
    [prediction] = model.compile(batch_sizes=[1], lengths=[8])(["good"])
    ids = np.asarray([model.tokenizer("good")["input_ids"]], np.int32)
    inputs = ids, np.full(1, ids.shape[1], np.int32), np.zeros_like(ids)
    config, params = model.served.config, model.served.params
    close(prediction.score, plain_logits(config, params, "regression", inputs)[0, 0])
    assert prediction.label is None
    assert prediction.probabilities == ()


def test_a_head_that_gives_no_label_or_several_is_refused(one_output):
    with pytest.raises(ModelError, match="several labels"):
        load(rewritten(one_output, problem_type="multi_label_classification"))
    with pytest.raises(ModelError, match=r"one output .* one label for all texts\n.*regression"):
        load(rewritten(one_output, problem_type="single_label_classification"))


def test_the_model_of_a_run_has_a_manifest(one_output, tmp_path):
    """Found by review: where it was lost, so could be the masks, and nothing told."""
    run = tmp_path / "run"
    shutil.copytree(one_output, run / "final")
    for name in ("run.json", "summary.json"):
        (run / name).write_text("{}")
    with pytest.raises(IntegrityError, match=MANIFEST):
        model_folder(run)
    write_manifest(run / "final")
    assert model_folder(run) == run / "final"
    assert model_folder(one_output) == one_output


def test_a_task_has_as_many_classes_as_the_model_outputs(tmp_path):
    config = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY), "type_vocab_size": 1})
    path = write_demo(tmp_path, train_size=1, dev_size=1)
    save_pretrained(path, config, random_params(config, "classification", 2), kind="classification")
    with pytest.raises(ConfigError, match=r"task mnli has 3 classes, and the model in .* 2 outputs"):
        load(path, task="mnli")
    with pytest.raises(ConfigError, match=r"no task 'custom'\n.*, demo$"):
        load(path, task="custom")
    predictor = load(path, task="mrpc").compile(batch_sizes=[1], lengths=[8])
    with pytest.raises(DataError, match="takes single texts, as its type_vocab_size is 1"):
        predictor([("good", "bad")])
    assert load(path).compile(batch_sizes=[1], lengths=[8])(["good"])
