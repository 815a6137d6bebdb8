"""A teacher asked once for a whole split says what it would say in every step."""

import jax
import numpy as np
import pytest

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.settings import TrainSettings
from mlprune_jax.data.batches import Batches, eval_batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.errors import ConfigError, Preempted
from mlprune_jax.models.tasks import TaskModel, init_params, predict_logits
from mlprune_jax.training import teaching
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.metrics import make_forward
from mlprune_jax.training.optimizer import plain_optimizer
from mlprune_jax.training.state import Fixed, init_state
from mlprune_jax.training.step import make_train_step
from mlprune_jax.training.teaching import TEACHER_LOGITS, answer_column, ask_teacher, in_parts
from tests.training.tiny import CONFIG

BUCKETS = (4, 8)
LENGTHS = (3, 8, 2, 5, 4, 7, 6)
KINDS = {"classification": 3, "regression": 1, "span": 2}


def split(kind):
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *LENGTHS], dtype=np.int64)
    ids = rng.integers(1, 40, offsets[-1]).astype(np.int32)
    labels = {
        "classification": np.arange(len(LENGTHS), dtype=np.int32) % 3,
        "regression": np.linspace(0, 1, len(LENGTHS), dtype=np.float32),
        "span": np.array([[0, n - 1] for n in LENGTHS], np.int32),
    }[kind]
    return Encoded(ids, np.zeros_like(ids), offsets, labels, 0)


@pytest.fixture(scope="module", params=KINDS)
def told(request):
    """A teacher, a split, and batches of it that hold the teacher's logits."""
    model, encoded = TaskModel(CONFIG, request.param, KINDS[request.param]), split(request.param)
    params, forward = init_params(model, 1), make_forward(model, Layout(1))

    def ask(part):
        return ask_teacher(forward, params, part, eval_batches(part, batch_size=3, buckets=BUCKETS))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(teaching, "PART", 4)
        answers = np.concatenate([ask(part) for part in in_parts(encoded)])
    column = answer_column(encoded, answers, per_token=request.param == "span")
    batches = Batches(encoded, batch_size=2, buckets=BUCKETS, seed=0, columns={TEACHER_LOGITS: column})
    return model, params, [batches.batch(step) for step in range(9)]


def test_batches_hold_what_the_teacher_says_of_their_examples(told):
    model, params, batches = told
    for batch in batches:
        logits = np.asarray(jax.jit(predict_logits, static_argnums=0)(model, params, batch))
        if model.kind == "span":
            logits = np.where(batch["attention_mask"][..., None] > 0, logits, 0)
        assert batch[TEACHER_LOGITS].dtype == np.float32
        np.testing.assert_allclose(batch[TEACHER_LOGITS], logits, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_parts_hold_every_example_once(monkeypatch, size):
    monkeypatch.setattr(teaching, "PART", size)
    encoded = split("classification")
    parts = list(in_parts(encoded))
    assert [len(part) for part in parts] == {1: [1] * 7, 3: [3, 3, 1], 7: [7], 8: [7]}[size]
    for name in ("input_ids", "token_type_ids", "lengths", "labels"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(together, getattr(encoded, name))


@pytest.mark.parametrize("told_at", range(4))
def test_asked_to_stop_the_teacher_answers_no_other_batch(told_at):
    encoded, answered = split("classification"), []

    def forward(params, batch):
        answered.append(batch)
        return np.zeros((len(batch["labels"]), 3), np.float32), np.zeros(len(batch["labels"]), np.float32)

    def ask():
        batches = eval_batches(encoded, batch_size=3, buckets=BUCKETS)
        return ask_teacher(forward, {}, encoded, batches, lambda: len(answered) == told_at)

    if told_at < 3:
        with pytest.raises(Preempted) as raised:
            ask()
        assert "mlprune resume" in raised.value.hint
    else:
        ask()
    assert len(answered) == told_at


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_same_with_the_teacher_and_with_its_logits(told, accumulate):
    model, params, batches = told
    distillation = Distillation(recovery="logits").of_recovery
    optimizer = plain_optimizer(TrainSettings(learning_rate=1e-2, warmup=0.0), 10)

    def step(teacher):
        taken = make_train_step(model, optimizer, teacher=teacher, distillation=distillation, accumulate=accumulate)
        fixed = Fixed({}, None, params if teacher else None)
        state = init_state({"params": init_params(model, 0)}, optimizer)
        return jax.device_get(taken(state, fixed, batches[0], jax.random.key(0))[1])

    asked, stored = step(model), step(None)
    assert stored["logit"] > 0
    for name in ("loss", "task", "logit", "grad_norm"):
        np.testing.assert_allclose(stored[name], asked[name], rtol=1e-4)


def test_hidden_states_cannot_be_compared_without_the_teacher(told):
    with pytest.raises(ConfigError, match="no teacher is given"):
        make_train_step(told[0], plain_optimizer(TrainSettings(), 10), distillation=Distillation())


def test_a_recovery_that_compares_nothing_is_refused():
    with pytest.raises(ValueError, match="needs a logit_weight above 0"):
        Distillation(recovery="logits", logit_weight=0)
    with pytest.raises(ValueError, match="variants 2 needs recovery logits"):
        Distillation(variants=2)


def test_recovery_compares_all_unless_told():
    assert Distillation().of_recovery == Distillation()
    alone = Distillation(recovery="logits").of_recovery
    assert not alone.compares_layers
    assert alone.logit_weight == Distillation().logit_weight
    assert alone.task_weight == Distillation().task_weight
    unlabelled = Distillation(recovery="logits", variants=2).of_recovery
    assert (unlabelled.task_weight, unlabelled.logit_weight) == (0, alone.logit_weight)
