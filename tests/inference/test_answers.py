"""Answers do not depend on how a model is run: masked, shrunk, with its tiles as zeros, or packed."""

import jax
import numpy as np
import pytest

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.answers import Answer
from mlprune_jax.data.batches import eval_batches
from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.data.encode import load_tokenizer
from mlprune_jax.data.squad import SQUAD, read_squad
from mlprune_jax.data.windows import encode_windows
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.inference import service
from mlprune_jax.inference.service import load
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.pretrained import save_pretrained
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.pruning.granularity import HEAD, ROW, find_groups
from mlprune_jax.pruning.masks import apply_masks, spread
from mlprune_jax.pruning.shrink import shrink
from mlprune_jax.training.answer_metrics import evaluate_answers, score_answers
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.metrics import make_forward
from tests.inference.conftest import CONFIG, random_masks, random_params
from tests.squad_files import write_questions

TASK = {"task": "squad2", "max_length": 16, "length_buckets": [16], "doc_stride": 3, "max_query_length": 4}
DENSE = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY), "layers": ()})
SHRUNK = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)})


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = write_questions(tmp_path_factory.mktemp("data") / "dev-v2.0.json", 12, version="2.0")
    return read_squad(path, SQUAD["squad2"])


@pytest.fixture(scope="module")
def answers_of(questions, tmp_path_factory):
    """A model's answers, served from a folder."""

    def call(config, params, masks=None, **options):
        folder = write_demo(tmp_path_factory.mktemp("model"), train_size=1, dev_size=1)
        params = jax.tree.map(np.asarray, params)
        save_pretrained(folder, config, params, kind="span", extra_config={"mlprune": {"task": TASK}})
        if masks is not None:
            save_masks(folder, masks)
        predictor = load(folder).compile(batch_sizes=[4], **options)
        return predictor(list(zip(*questions.texts, strict=True))), predictor

    return call


def same(found, wanted):
    assert [(a.text, a.start) for a in found] == [(a.text, a.start) for a in wanted]
    np.testing.assert_allclose([a.score for a in found], [a.score for a in wanted], rtol=1e-3)


def test_masked_and_shrunk_models_answer_alike(answers_of):
    rng = np.random.default_rng(3)
    groups = find_groups(DENSE, (HEAD, ROW))
    masks = spread(groups, {g.name: rng.random(g.units) < 0.7 for g in groups})
    params = apply_masks(random_params(DENSE, "span", 2), masks)
    smaller, config = shrink(params, masks, DENSE)
    assert config.layers
    masked, _ = answers_of(DENSE, params)
    shrunk, _ = answers_of(config, smaller)
    same(shrunk, masked)
    assert len({answer.text for answer in masked}) > 3


def test_packed_models_answer_like_those_with_zeros_and_like_evaluation(answers_of, questions, tmp_path):
    masks = random_masks(SHRUNK, 0.5, 0)
    params = apply_masks(random_params(SHRUNK, "span", 2), masks)
    zeros, _ = answers_of(SHRUNK, params)
    packed, predictor = answers_of(SHRUNK, params, masks, implementation="xla")
    assert "xla" in {decision.choice.implementation for decision in predictor.compiled.decisions(4, 16)}
    same(packed, zeros)
    settings = TaskSettings.model_validate(TASK)
    tokenizer = load_tokenizer(write_demo(tmp_path, train_size=1, dev_size=1))
    windows = encode_windows(questions, tokenizer, **settings.windowing)
    assert len(windows) > len(questions)
    forward = make_forward(TaskModel(SHRUNK, "span", 2), Layout())
    batches = eval_batches(windows, batch_size=8, buckets=settings.buckets)
    told = evaluate_answers(forward, params, windows, batches, settings).metrics
    texts = dict(zip(questions.ids, (answer.text for answer in packed), strict=True))
    scores = score_answers(questions, texts, may_have_no_answer=True)
    assert {name: told[name] for name in scores} == scores


def test_a_stream_of_questions(answers_of, questions):
    answers, predictor = answers_of(DENSE, random_params(DENSE, "span", 2))
    pairs = list(zip(*questions.texts, strict=True))
    same(list(predictor.stream(iter(pairs), chunk=5)), answers)
    assert predictor([]) == []
    assert predictor([("the film", "")]) == [Answer("", 1.0, None)]


def test_a_span_model_needs_contexts_and_room_for_them(tmp_path, monkeypatch):
    folder = write_demo(tmp_path, train_size=1, dev_size=1)
    save_pretrained(folder, DENSE, random_params(DENSE, "span", 2), kind="span")
    with monkeypatch.context() as patched:
        patched.setattr(service, "compile_model", None)  # it is told before
        with pytest.raises(ConfigError, match=r"at most 32 tokens leave no room .*\n.* must be 196 or more"):
            load(folder).compile(batch_sizes=[1])
    monkeypatch.setattr(service, "UNTOLD", TaskSettings(task="squad", doc_stride=3, max_query_length=4))
    predictor = load(folder).compile(batch_sizes=[1])
    assert predictor.compiled.buckets == ((1, 32),)  # no task is stored: 128, 256 and 384 are above its positions
    assert predictor.compiled.logits(np.ones((1, 5), int), [5]).shape == (1, 5, 2)
    assert predictor._settings.answering["null_threshold"] is None  # every question has an answer
    told = load(folder, task="squad2").task
    assert told is not None
    assert told.answering["null_threshold"] is not None
    with pytest.raises(ConfigError, match=r"task sst2 is a classification, and .* holds a model for span"):
        load(folder, task="sst2")
    stored = {"mlprune": {"task": {"task": "squad2"}}}
    save_pretrained(folder, DENSE, random_params(DENSE, "span", 2), kind="span", extra_config=stored)
    assert load(folder, task="SQuAD-2").task == load(folder).task
    with pytest.raises(ConfigError, match="is for task squad2, not squad"):
        load(folder, task="squad")
    with pytest.raises(DataError, match=r"takes pairs of texts \(question, context\), got single texts"):
        predictor(["a text"])
