"""One train step: what moves, what must not, and what never recompiles."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.geometry import LayerShape
from mlprune_jax.config.settings import HeadRowStage, TrainSettings
from mlprune_jax.models.tasks import TaskModel, init_params, predict_logits
from mlprune_jax.pruning.density import HeadRowCost, counted_budget
from mlprune_jax.pruning.granularity import HEAD, ROW, find_groups
from mlprune_jax.pruning.masks import init_scores, init_thresholds
from mlprune_jax.training.checkpoint import save_state
from mlprune_jax.training.optimizer import plain_optimizer, pruning_optimizer
from mlprune_jax.training.state import Fixed, init_state, merge, split_frozen
from mlprune_jax.training.step import make_train_step
from tests.training.tiny import CONFIG

MODEL = TaskModel(CONFIG, "classification", 2)
GROUPS = find_groups(CONFIG, (HEAD, ROW))
KEY = jax.random.key(0)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 40, (4, 8)).astype(np.int32)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "labels": rng.integers(0, 2, 4).astype(np.int32),
    }


@pytest.fixture(scope="module")
def setting():
    params = init_params(MODEL, 0)
    stage = HeadRowStage(densities="learned", threshold_learning_rate=0.5, learning_rate=1e-2, warmup=0.0, ramp=None)
    budget = counted_budget(HeadRowCost(CONFIG, GROUPS))
    optimizer = pruning_optimizer(stage, 100, budget, 0.4)
    step = make_train_step(MODEL, optimizer, groups=GROUPS, teacher=MODEL, distillation=Distillation())
    trained, frozen = split_frozen(params, freeze_embeddings=True)
    tree = {"params": trained, "scores": init_scores(GROUPS), "thresholds": init_thresholds(GROUPS, 5.0)}
    fixed = Fixed(jax.tree.map(jnp.asarray, frozen), None, params)
    return step, lambda: init_state(tree, optimizer), fixed


def test_density_falls_without_recompilation(setting):
    step, fresh, fixed = setting
    state, densities = fresh(), []
    for i in range(30):
        state, metrics = step(state, fixed, batch(i), KEY)
        densities.append(float(metrics["density"]))
    assert densities[0] == 1.0
    assert densities[-1] < 0.5
    assert step._cache_size() == 1
    assert int(state.step) == 30
    assert {"loss", "task", "logit", "hidden", "attention", "grad_norm", "strength"} <= metrics.keys()


def with_head(number):
    layer = LayerShape(heads=(number,), ffn=tuple(range(CONFIG.intermediate_size)))
    return CONFIG.model_copy(update={"layers": (layer,)})


@pytest.mark.parametrize(
    ("own", "other"),
    [(CONFIG, CONFIG.model_copy(update={"num_attention_heads": 4})), (with_head(0), with_head(1))],
)
def test_attention_is_not_compared_where_a_teacher_has_other_heads(own, other):
    """Found by review: whole layers passed as alike, with four heads beside two."""
    student, teacher = (TaskModel(config, "classification", 2) for config in (own, other))
    still = optax.sgd(0.0)
    step = make_train_step(student, still, teacher=teacher, distillation=Distillation())
    state = init_state({"params": init_params(student, 0)}, still)
    _, metrics = step(state, Fixed({}, None, init_params(teacher, 1)), batch(), KEY)
    assert metrics["attention"] == 0 < metrics["hidden"]


def test_the_task_loss_of_spans_does_not_see_what_stands_in_padding():
    still = CONFIG.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    model, optimizer = TaskModel(still, "span", 2), optax.sgd(0.0)
    step, params = make_train_step(model, optimizer), init_params(model, 0)
    given = batch() | {"labels": np.array([[0, 4], [1, 1], [2, 3], [4, 4]], np.int32)}
    given["attention_mask"][:, 5:] = 0
    other = given | {"input_ids": np.where(given["attention_mask"] == 1, given["input_ids"], 0)}

    def loss(inputs):
        return float(step(init_state({"params": params}, optimizer), Fixed({}), inputs, KEY)[1]["task"])

    assert loss(given) == pytest.approx(loss(other), rel=1e-6)


def test_same_seed_and_step_give_the_same_bits(setting):
    step, fresh, fixed = setting
    one, _ = step(fresh(), fixed, batch(), KEY)
    two, _ = step(fresh(), fixed, batch(), KEY)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_non_finite_step_changes_nothing_but_its_count(setting):
    step, fresh, fixed = setting
    broken = fixed._replace(teacher=jax.tree.map(lambda x: x * jnp.nan, fixed.teacher))
    before = jax.device_get(fresh())
    after, metrics = step(fresh(), broken, batch(), KEY)
    assert int(after.skipped) == 1
    assert not np.isfinite(metrics["loss"])
    for a, b in zip(
        jax.tree.leaves((after.trained, after.opt_state)),
        jax.tree.leaves((before.trained, before.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    good, _ = step(after, fixed, batch(), KEY)
    assert int(good.skipped) == 0


def test_frozen_embeddings_are_no_part_of_the_state(setting):
    _, fresh, fixed = setting
    state = fresh()
    assert "embeddings" not in state.trained["params"]["bert"]
    assert merge(state.trained["params"], fixed.params)["bert"].keys() == {"embeddings", "encoder", "pooler"}


def test_plain_orbax_reads_what_was_learned(setting, tmp_path):
    _, fresh, _ = setting
    trained = fresh().trained
    save_state(tmp_path / "learned", trained)
    jax.tree.map(np.testing.assert_array_equal, ocp.load(str(tmp_path / "learned"), trained), trained)


def one_step(model, **options):
    """A plain step from the same start over the same batch; its gradient's moment, loss and norm on the host."""
    optimizer = plain_optimizer(TrainSettings(learning_rate=1e-2, warmup=0.0, max_grad_norm=1e9), 10)
    step = make_train_step(model, optimizer, **options)
    state, metrics = step(init_state({"params": init_params(MODEL, 0)}, optimizer), Fixed({}), batch(), KEY)
    moments = optax.tree.get(state.opt_state, "mu")
    return jax.device_get((moments, metrics["loss"], metrics["grad_norm"]))


def assert_close(one, other):
    """Each array to 1e-5 of its largest value, or to float32's resolution of the largest of all, where sums cancel."""
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(one))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        atol = max(1e-5 * np.max(np.abs(a)), np.finfo(np.float32).eps * largest)
        np.testing.assert_allclose(b, a, rtol=0, atol=atol)


def test_a_batch_in_parts_is_the_whole_batch():
    """Without dropout, whose draws differ by part."""
    still = TaskModel(
        CONFIG.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}), "classification", 2
    )
    assert_close(one_step(still), one_step(still, accumulate=2))


def test_dropout_differs_by_step_and_by_part():
    """With nothing learned, from the same example in every step and part."""
    one = {name: rows[:1] for name, rows in batch().items()}
    still = optax.sgd(0.0)

    def losses(parts):
        state = init_state({"params": init_params(MODEL, 0)}, still)
        step = make_train_step(MODEL, still, accumulate=parts)
        alike = {name: rows.repeat(parts, 0) for name, rows in one.items()}
        found = []
        for _ in range(2):
            state, metrics = step(state, Fixed({}), alike, KEY)
            found.append(float(metrics["loss"]))
        return found

    two, four = losses(2), losses(4)
    assert two[0] != pytest.approx(two[1])
    assert two[0] != pytest.approx(four[0])  # the mean over parts that are alike would be that of one


def test_rematerialized_is_the_same_step():
    again = TaskModel(CONFIG, "classification", 2, rematerialize=True)
    assert_close(one_step(MODEL), one_step(again))


def test_deterministic_is_the_same_step_on_a_cpu():
    assert_close(one_step(MODEL), one_step(MODEL, deterministic=True))


@pytest.mark.parametrize(("deterministic", "options"), [(True, {"xla_gpu_deterministic_ops": True}), (False, None)])
def test_what_forbids_sums_in_any_order_reaches_the_compiler(deterministic, options, monkeypatch):
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda function, **rest: given.append(rest) or jit(function, **rest))
    make_train_step(MODEL, plain_optimizer(TrainSettings(), 10), deterministic=deterministic)
    assert [rest["compiler_options"] for rest in given] == [options]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_train_step_and_forward_lower_for(setting, platform):
    step, fresh, fixed = setting
    exported = jax.export.export(step, platforms=[platform])(fresh(), fixed, batch(), KEY)
    assert exported.platforms == (platform,)
    forward = jax.jit(lambda params, inputs: predict_logits(MODEL, params, inputs))
    assert jax.export.export(forward, platforms=[platform])(fixed.teacher, batch()).out_avals[0].shape == (4, 2)
