"""What stages hand to what trains them, and what they make of what it returns; nothing is trained."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.data.demo import DEMO
from mlprune_jax.data.encode import Encoded
from mlprune_jax.data.tasks import GLUE
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pipeline import stages
from mlprune_jax.pipeline.context import Context, Model, stage_seed
from mlprune_jax.pipeline.stages import block_stage, head_row_stage
from mlprune_jax.pruning.density import HeadRowCost
from mlprune_jax.pruning.granularity import HEAD, ROW, find_groups
from mlprune_jax.pruning.masks import init_scores, masks_keeping
from mlprune_jax.pruning.shrink import shrink
from mlprune_jax.training.comparison import Outcomes
from mlprune_jax.training.mesh import Layout
from tests.pipeline.conftest import GEOMETRY

ONES = np.ones(64, np.int32)
SPLIT = Encoded(ONES, ONES, np.arange(65), ONES, 0)
HEAD_ROW = find_groups(GEOMETRY, (HEAD, ROW))
COST = HeadRowCost(GEOMETRY, HEAD_ROW)


def context(tiny, task=DEMO, **settings):
    """A run's, of 64 examples."""

    def none(*_):
        raise AssertionError("nothing is trained")

    parts = dict.fromkeys(("stopping", "log", "measured", "recall", "go_on"), none)
    return Context(tiny.config(**settings), task, 2, SPLIT, SPLIT, frozenset({0}), Layout(), **parts)


def stage_context(tiny, name, stage, **prune):
    """With settings of one stage."""
    settings = tiny.settings["prune"]
    return context(tiny, prune={**settings, **prune, name: {**settings[name], "recover": 0.0, **stage}})


@pytest.fixture(scope="module")
def whole():
    return Model(GEOMETRY, jax.device_get(init_params(TaskModel(GEOMETRY, "classification", 2), 0)))


@pytest.fixture(scope="module")
def half(whole):
    """Half of all heads, rows and FFN units."""
    masks = masks_keeping(HEAD_ROW, init_scores(HEAD_ROW), {group.name: group.size // 2 for group in HEAD_ROW})
    params, config = shrink(whole.params, masks, GEOMETRY)
    return Model(config, params)


@pytest.fixture
def learn(monkeypatch):
    """What the optimiser of a pruning stage is made of; ``learned`` replaces what the stage would have learned."""
    seen = SimpleNamespace(learned={})

    def optimizer(settings, steps, budget, aim, *, start):
        vars(seen).update(settings=settings, steps=steps, budget=budget, aim=aim, start=start)

    def train(context, stage, settings, steps, config, trained, *_):
        seen.trained_with = settings
        return trained | {name: values(trained[name]) for name, values in seen.learned.items()}

    monkeypatch.setattr(stages, "pruning_optimizer", optimizer)
    monkeypatch.setattr(stages, "_train", train)
    return seen


@pytest.mark.parametrize(("name", "swap"), [("rte", False), ("mnli", False), ("mrpc", True), ("stsb", True)])
def test_variants_swap_the_texts_of_symmetric_tasks_alone(tiny, whole, monkeypatch, name, swap):
    """A swapped premise and hypothesis would be another question."""
    asked = []

    def varied(*arguments, **options):
        asked.append((arguments, options))
        return SPLIT

    monkeypatch.setattr(stages, "with_variants", varied)
    distillation = {"recovery": "logits", "variants": 3}
    stages._with_variants(context(tiny, GLUE[name], distillation=distillation, seed=5), whole)
    ((split, embeddings, copies), options) = asked[0]
    assert split is SPLIT
    np.testing.assert_array_equal(embeddings, whole.params["bert"]["embeddings"]["word"]["embedding"])
    assert copies == 3
    assert options == {"spared": frozenset({0}), "swap": swap, "seed": stage_seed(5, "variants")}


def test_every_stage_of_every_seed_draws_its_own():
    assert len({stage_seed(seed, stage) for seed in (0, 1) for stage in ("a", "b")}) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_module_computes_as_the_settings_say(tiny, dtype):
    assert context(tiny, compute_dtype=dtype).module(GEOMETRY).dtype == jnp.dtype(dtype)


def test_scores_are_of_float32_whatever_trained(tiny, whole, monkeypatch):
    """So that `mlprune eval`, which computes in float32, finds the same."""

    def evaluated(module, *_, **__):
        return Outcomes((), None, lambda _: {}, {"dtype": jnp.dtype(module.dtype)})

    monkeypatch.setattr(stages, "evaluate_split", evaluated)
    assert stages.score(context(tiny, compute_dtype="bfloat16"), whole) == {"dtype": jnp.float32}


def test_fishers_order_is_measured_on_batches_that_fit_as_training_ones_do(tiny, whole, learn, monkeypatch):
    """A batch that passes through the device in parts is too large to be taken whole."""
    rows = []

    def fisher(module, groups, params, batches, **_):
        rows.extend({len(batch["labels"]) for batch in batches})
        return init_scores(groups)

    monkeypatch.setattr(stages, "fisher_scores", fisher)
    stage = {"score_init": "fisher", "accumulate": 4, "batch_size": 16}
    head_row_stage(stage_context(tiny, "heads_rows", stage, density=0.5), whole, None)
    assert rows == [4]


def test_the_blocks_of_a_shrunk_model_start_at_its_own_density(tiny, half, learn):
    """Of the dense encoder: a ramp from 1 would ask for more than there is."""
    block_stage(stage_context(tiny, "blocks", {"score_init": "constant"}, density=0.2), half, None)
    kernels = 3 * 32 * 16 + 16 * 16 + 32 * 32 + 32 * 16
    vectors = 3 * 16 + 16 + 32 + 16 + 4 * 32
    assert learn.start == pytest.approx((kernels + vectors) / 8544, rel=1e-9)
    assert learn.aim == 0.2
    assert learn.steps == 8


@pytest.mark.parametrize("densities", ["learned", "soft"])
def test_a_stage_trains_at_the_rate_that_arrives(tiny, whole, learn, densities):
    """8 steps at the rates that there are move thresholds by 0.4 and scores by 0.04."""
    head_row_stage(stage_context(tiny, "heads_rows", {"densities": densities}, density=0.5), whole, None)
    if densities == "soft":
        assert learn.settings.score_learning_rate == pytest.approx(0.3 / 4)
    else:
        assert learn.settings.threshold_learning_rate > 3.0
    assert learn.trained_with == learn.settings


@pytest.mark.parametrize("by_count", [True, False])
def test_a_stage_is_steered_by_the_count_or_by_r(tiny, whole, learn, by_count):
    """R prices kernels alone, all at the same threshold here; its target leaves out what it does not price."""
    settings = {"densities": "learned", "steer_by_count": by_count}
    head_row_stage(stage_context(tiny, "heads_rows", settings, density=0.5), whole, None)
    value = float(learn.budget({group.name: jnp.float32(0.0) for group in HEAD_ROW}))
    halves = 0.5 * 3 * 1024 + 0.25 * 1024 + 0.5 * 2048 + 0.25 * 2048
    if by_count:
        assert (learn.start, learn.aim) == (1.0, 0.5)
        vectors = 3 * 16 + 16 + 32 + 16 + 4 * 32
        assert value == pytest.approx((halves + vectors) / 8544, rel=1e-6)
    else:
        assert learn.start == 1.0
        assert learn.aim == pytest.approx((8544 / 2 - 352) / 8192, rel=1e-9)
        assert value == pytest.approx(halves / 8192, rel=1e-6)


def halves_left(values):
    """Scores of which the first half is above 0."""
    return {name: np.where(np.arange(value.size) < value.size // 2, 1.0, -1.0) for name, value in values.items()}


LEFT = [
    ("learned", {"thresholds": lambda values: {name: np.float32(0.0) for name in values}}),
    ("soft", {"scores": halves_left}),
]


@pytest.mark.parametrize(("densities", "learned"), LEFT, ids=["learned", "soft"])
@pytest.mark.parametrize("final_cut", [False, True])
def test_without_a_final_cut_stays_what_was_learned(tiny, whole, learn, densities, learned, final_cut):
    learn.learned = learned
    settings = stage_context(
        tiny,
        "heads_rows",
        {"densities": densities, "final_cut": final_cut},
        density=0.3,
        blocks={"enabled": False},
    )
    result = head_row_stage(settings, whole, None)
    shape = result.model.config.layer_shapes[1]
    kept = [len(units) for units in (shape.heads, shape.attention_output, shape.ffn, shape.ffn_output)]
    if final_cut:
        assert sum(kept) < 2 + 16 + 32 + 16
    else:
        assert kept == [2, 16, 32, 16]
    assert result.unrounded.config == result.model.config


def test_the_teacher_of_blocks_is_not_rounded_to_tiles(tiny, whole, learn):
    logits = np.linspace(-1, 1, len(HEAD_ROW), dtype=np.float32)
    learn.learned = {"thresholds": lambda values: dict(zip(values, logits, strict=True))}
    settings = {"densities": "learned", "final_cut": False, "temperature": 2.0}
    result = head_row_stage(stage_context(tiny, "heads_rows", settings, density=0.5), whole, None)
    names = [group.name for group in HEAD_ROW]
    shares = 1 / (1 + np.exp(-logits / 2))
    kept = {n: int(np.ceil(share * g.size)) for n, share, g in zip(names, shares, HEAD_ROW, strict=True)}
    rounded = {n: kept[n] if n.endswith("/attention") else -(-kept[n] // 8) * 8 for n in names}
    assert kept != rounded
    for model, units in ((result.unrounded, kept), (result.model, rounded)):
        assert sum(leaf.size for leaf in jax.tree.leaves(model.params["bert"]["encoder"])) == COST.count(units)
