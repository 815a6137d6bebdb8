"""Losses against their formulas, schedules, metrics, and whether thresholds can arrive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import HeadRowStage, TrainSettings
from mlprune_jax.data.batches import eval_batches
from mlprune_jax.data.encode import Encoded as Split
from mlprune_jax.errors import ConfigError
from mlprune_jax.models.bert import Encoded
from mlprune_jax.models.tasks import Outputs
from mlprune_jax.pruning.density import HeadRowCost
from mlprune_jax.pruning.granularity import HEAD, ROW, find_groups
from mlprune_jax.training.arrival import arriving
from mlprune_jax.training.losses import (
    attention_distance,
    distillation_loss,
    hidden_distance,
    logit_divergence,
    task_loss,
)
from mlprune_jax.training.metrics import METRICS, evaluate
from mlprune_jax.training.optimizer import linear_schedule, ramped_target, weight_optimizer

rng = np.random.default_rng(0)


def outputs(heads=2, seed=0):
    r = np.random.default_rng(seed)
    hidden = tuple(jnp.asarray(r.normal(size=(2, 4, 3)), jnp.float32) for _ in range(2))
    maps = (jnp.asarray(r.random((2, heads, 4, 4)), jnp.float32),)
    return Outputs(jnp.asarray(r.normal(size=(2, 3)), jnp.float32), Encoded(hidden[-1], None, hidden, maps))


MASK = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0]], jnp.int32)


def test_distillation_equals_its_formula():
    student, teacher = outputs(seed=1), outputs(seed=2)
    settings = Distillation(temperature=2.0, logit_weight=0.9, hidden_weight=0.5, attention_weight=0.25, average="all")
    terms = distillation_loss(student, teacher, MASK, settings)
    p = jax.nn.softmax(teacher.logits / 2)
    kl = (p * (jnp.log(p) - jax.nn.log_softmax(student.logits / 2))).sum(-1).mean()
    assert terms["logit"] == pytest.approx(0.9 * 4 * float(kl), rel=1e-5)
    pairs = zip(student.encoded.hidden_states, teacher.encoded.hidden_states, strict=True)
    assert terms["hidden"] == pytest.approx(0.5 * sum(float(jnp.square(s - t).mean()) for s, t in pairs), rel=1e-5)
    gap = jnp.square(student.encoded.attentions[0] - teacher.encoded.attentions[0]).mean()
    assert terms["attention"] == pytest.approx(0.25 * float(gap), rel=1e-5)


def test_distances_are_means_over_what_counts():
    """Not over all there is, where a batch of more padding would weigh less."""
    one, other = outputs(seed=1).encoded, outputs(seed=2).encoded
    weights, real = MASK.astype(jnp.float32), np.asarray(MASK) == 1
    gaps = np.square(np.asarray(one.hidden_states[0]) - np.asarray(other.hidden_states[0])).mean(-1)
    found = hidden_distance(one.hidden_states[0], other.hidden_states[0], weights)
    assert found == pytest.approx(gaps[real].mean(), rel=1e-5)
    gaps = np.square(np.asarray(one.attentions[0]) - np.asarray(other.attentions[0])).mean(1)
    found = attention_distance(one.attentions[0], other.attentions[0], weights)
    assert found == pytest.approx(gaps[real[:, :, None] & real[:, None, :]].mean(), rel=1e-5)


def test_distances_over_tokens_do_not_see_padding():
    student, teacher = outputs(seed=1), outputs(seed=2)
    noise = jnp.where(MASK[..., None] == 1, 0.0, 7.0)
    maps = jnp.where(MASK[:, None, None, :] * MASK[:, None, :, None] == 1, 0.0, 7.0)
    encoded = student.encoded
    noisy = student._replace(
        encoded=encoded._replace(
            hidden_states=tuple(h + noise for h in encoded.hidden_states),
            attentions=tuple(a + maps for a in encoded.attentions),
        )
    )
    ours = distillation_loss(student, teacher, MASK, Distillation())
    theirs = distillation_loss(noisy, teacher, MASK, Distillation())
    for name in ours:
        assert theirs[name] == pytest.approx(float(ours[name]), rel=1e-6)


def test_attention_counts_only_where_heads_match():
    terms = distillation_loss(outputs(heads=1), outputs(heads=2), MASK, Distillation())
    assert terms["attention"] == 0
    same, other = (
        distillation_loss(outputs(seed=1), outputs(seed=2), MASK, Distillation(), same_heads=[alike])["attention"]
        for alike in (True, False)
    )
    assert same > other == 0


def test_models_that_cannot_be_compared():
    student, teacher = outputs(seed=1), outputs(seed=2)
    shallow = teacher._replace(encoded=teacher.encoded._replace(hidden_states=teacher.encoded.hidden_states[:1]))
    with pytest.raises(ConfigError, match=r"weighs hidden_states by 0\.9: student and teacher have 2 and 1"):
        distillation_loss(student, shallow, MASK, Distillation())
    terms = distillation_loss(student, shallow, MASK, Distillation(hidden_weight=0))  # of no weight: of no concern
    assert terms["hidden"] == 0 < terms["logit"]
    with pytest.raises(ConfigError, match=r"logits of \(2, 3\) and \(2, 1\)"):
        distillation_loss(student, teacher._replace(logits=teacher.logits[:, :1]), MASK, Distillation())


@pytest.mark.parametrize("lacks", ["hidden_states", "attentions"])
def test_what_has_a_weight_must_be_there(lacks):
    """Found by review: without hidden=True the term was 0, and nobody was told."""
    student = outputs()
    student = student._replace(encoded=student.encoded._replace(**{lacks: ()}))
    with pytest.raises(ConfigError, match=f"weighs {lacks} by 0.9"):
        distillation_loss(student, outputs(), MASK, Distillation())


def test_task_losses():
    logits = jnp.asarray(rng.normal(size=(2, 5, 2)), jnp.float32)
    spans = jnp.asarray([[0, 3], [2, 2]], jnp.int32)
    log_p = jax.nn.log_softmax(logits, axis=1)
    wanted = -np.mean([log_p[b, spans[b, e], e] for b in range(2) for e in range(2)])
    assert task_loss(logits, spans, "span") == pytest.approx(float(wanted), rel=1e-5)
    assert task_loss(jnp.asarray([[1.0], [3.0]]), jnp.asarray([0.0, 1.0]), "regression") == pytest.approx(2.5)


def test_regression_follows_its_teacher_by_the_square():
    student, teacher = jnp.asarray([[1.0], [3.0]]), jnp.asarray([[0.0], [1.0]])
    assert logit_divergence(student, teacher, 2.0, "regression") == pytest.approx(2.5)  # no temperature in it


def test_metrics_by_hand_and_of_constants():
    gold, predicted = np.array([1, 1, 1, 1, 0, 0, 0, 0]), np.array([1, 1, 0, 0, 1, 0, 0, 0])
    right, missed, wrong, left = 2, 2, 1, 3
    assert METRICS["accuracy"](gold, predicted) == (right + left) / 8
    assert METRICS["f1"](gold, predicted) == pytest.approx(2 * right / (2 * right + missed + wrong))
    assert METRICS["mcc"](gold, predicted) == pytest.approx((right * left - wrong * missed) / (3 * 4 * 4 * 5) ** 0.5)
    assert METRICS["f1"](np.zeros(8, int), np.zeros(8, int)) == METRICS["mcc"](gold, np.zeros(8, int)) == 0
    line = np.arange(9.0)
    assert METRICS["pearson"](line, 2 * line + 1) == pytest.approx(1)
    assert METRICS["spearman"](line, np.exp(line)) == pytest.approx(1)
    assert METRICS["pearson"](line, np.ones(9)) == METRICS["spearman"](np.ones(9), line) == 0


@pytest.mark.parametrize("batch_size", [3, 7])
def test_an_evaluation_counts_every_example_once(batch_size):
    """Whatever the batches, the last of which holds one example and two that fill it up."""
    labels = np.array([4, 0, 6, 2, 5, 1, 3], np.float32)
    split = Split(np.ones(28, np.int32), np.zeros(28, np.int32), np.arange(0, 29, 4, dtype=np.int64), labels, 0)

    def forward(params, batch):
        assert params == "those given"
        return 2 * batch["labels"][:, None] + 1, batch["labels"] ** 2

    batches = eval_batches(split, batch_size=batch_size, buckets=(4,))
    found = evaluate(forward, "those given", batches, ("pearson", "spearman"), "regression").metrics
    assert found == {"pearson": pytest.approx(1), "spearman": pytest.approx(1), "loss": 13, "examples": 7}


def test_outcomes_are_in_the_order_of_the_examples():
    """Batches are not: short ones come first, and which are depends on the tokenizer and on max_length."""
    ends = np.cumsum([0, 4, 1, 3, 2])
    labels = np.array([4, 0, 6, 2], np.float32)
    split = Split(np.ones(10, np.int32), np.zeros(10, np.int32), ends, labels, 0)
    batches = eval_batches(split, batch_size=3, buckets=(4,))
    found = evaluate(lambda _, b: (b["labels"][:, None], b["labels"]), {}, batches, ("pearson",), "regression")
    assert np.array_equal(found.answers, labels)
    assert found.score(slice(0, 2))["loss"] == 2
    assert found.correct is None


def test_an_evaluation_takes_the_likeliest_class():
    batch = {"labels": np.array([2, 0, 1], np.int32), "weights": np.ones(3, np.float32), "index": np.arange(3)}
    logits = np.array([[0, -1, 1], [3, 2, 1], [5, -5, 0]], np.float32)
    found = evaluate(lambda *_: (logits, np.zeros(3, np.float32)), {}, [batch], ("accuracy",), "classification").metrics
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_schedules():
    rate = linear_schedule(2.0, 0.1, 100)
    assert [float(rate(s)) for s in (0, 5, 10, 55, 100)] == pytest.approx([0, 1, 2, 1, 0])
    target = ramped_target(0.2, (0.1, 0.5), 100)
    values = [float(target(jnp.int32(s))) for s in range(101)]
    assert values[10] == 1.0
    assert values[50] == pytest.approx(0.2)
    assert values == sorted(values, reverse=True)
    half = ramped_target(0.2, (0.1, 0.5), 100, 0.5)
    assert float(half(jnp.int32(5))) == 0.5
    assert float(half(jnp.int32(50))) == pytest.approx(0.2)


@pytest.mark.parametrize(("densities", "what"), [("learned", "threshold"), ("soft", "score")])
def test_what_cannot_arrive_is_refused_or_mended(densities, what, caplog):
    config = ModelConfig()
    cost = HeadRowCost(config, find_groups(config, (HEAD, ROW)))
    start = {"threshold": {"threshold_start": 10}, "score": {"score_init": "constant", "score_scale": 10}}[what]
    stage = HeadRowStage(densities=densities, **start, **{f"{what}_learning_rate": 1e-2})
    assert arriving(stage, cost, 0.5, 4000) == stage
    assert not caplog.messages
    mended = arriving(stage, cost, 0.5, 500)
    assert getattr(mended, f"{what}_learning_rate") * 500 / 2 >= 10
    assert f"{what}s start at" in caplog.text
    with pytest.raises(ConfigError, match="must fall by"):
        arriving(stage.model_copy(update={"short_schedule": "refuse"}), cost, 0.5, 500)
    allowing = stage.model_copy(update={"short_schedule": "allow"})
    caplog.clear()
    assert arriving(allowing, cost, 0.5, 500) == allowing
    assert "at most; left so" in caplog.text


def test_scores_that_are_not_to_learn_stay_and_it_is_said_so(caplog):
    config = ModelConfig()
    cost = HeadRowCost(config, find_groups(config, (HEAD, ROW)))
    stage = HeadRowStage(score_init="fisher", score_learning_rate=0)
    assert arriving(stage, cost, 0.5, 500) == stage
    assert "the final cut chooses alone" in caplog.text
    stage = stage.model_copy(update={"final_cut": False, "short_schedule": "refuse"})
    with pytest.raises(ConfigError, match="move them by 0 at most"):  # else nothing would ever go
        arriving(stage, cost, 0.5, 500)


def test_soft_scores_have_to_fall_from_the_highest_and_only_where_something_goes():
    config = ModelConfig()
    cost = HeadRowCost(config, find_groups(config, (HEAD, ROW)))
    stage = HeadRowStage(score_init="fisher", score_scale=0.3, short_schedule="refuse")
    assert arriving(stage, cost, 0.2, 91) == stage
    with pytest.raises(ConfigError, match=r"scores start at up to 0\.45 and must fall by 0\.45"):
        arriving(stage, cost, 0.2, 80)
    assert arriving(stage, cost, 1.0, 1) == stage


def test_biases_and_norms_do_not_decay():
    settings = TrainSettings(weight_decay=0.5, learning_rate=1.0, warmup=0.0)
    optimizer = weight_optimizer(settings, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state, zeros = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):  # as in the step: optax asks for it
        _, state = optimizer.update(zeros, state, params)  # the first rate is 0
        updates, _ = optimizer.update(zeros, state, params)
    assert (updates["kernel"] < 0).all()
    assert not updates["bias"].any()


def span_outputs(logits):
    logits = jnp.asarray(logits, jnp.float32)
    return Outputs(logits, Encoded(jnp.zeros((*logits.shape[:2], 4)), None, (), ()))


def test_padding_changes_no_loss_of_spans():
    """Neither its logits nor how much of it there is; and it gets no gradient."""
    student, teacher = rng.normal(size=(2, 2, 9, 2)) * 30
    labels = jnp.asarray([[1, 4], [0, 0]], jnp.int32)
    mask = jnp.asarray([[1] * 6 + [0] * 3, [1] * 6 + [0] * 3], jnp.int32)
    short = mask[:, :6]
    for temperature in (0.25, 2.0):
        whole = logit_divergence(jnp.asarray(student), jnp.asarray(teacher), temperature, "span", mask)
        cut = logit_divergence(jnp.asarray(student[:, :6]), jnp.asarray(teacher[:, :6]), temperature, "span", short)
        assert whole == pytest.approx(float(cut), rel=1e-5)
    whole = task_loss(jnp.asarray(student), labels, "span", mask)
    assert whole == pytest.approx(float(task_loss(jnp.asarray(student[:, :6]), labels, "span")), rel=1e-5)

    def loss(logits):
        outputs, target = span_outputs(logits), span_outputs(teacher)
        settings = Distillation(hidden_weight=0, attention_weight=0)
        terms = distillation_loss(outputs, target, mask, settings, "span")
        return terms["logit"] + task_loss(logits, labels, "span", mask)

    gradient = jax.grad(loss)(jnp.asarray(student, jnp.float32))
    assert jnp.isfinite(gradient).all()
    assert (gradient[:, 6:] == 0).all()
    assert (gradient[:, :6] != 0).any()
