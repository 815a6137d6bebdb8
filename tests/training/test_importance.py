"""Scores measured before a stage: what the loss says of each unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.models.tasks import TaskModel, init_params, run_model
from mlprune_jax.pruning.density import HeadRowCost
from mlprune_jax.pruning.granularity import HEAD, ROW, block, find_groups
from mlprune_jax.training.importance import evenly_ranked, first_scores, fisher_scores, per_parameter
from mlprune_jax.training.losses import task_loss
from tests.training.tiny import CONFIG

MODEL = TaskModel(CONFIG, "classification", 3)
NAMES = ("attention", "attention_output", "ffn", "ffn_output")


@pytest.fixture(scope="module")
def params():
    noise = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), init_params(MODEL, 0))


def batch(seed):
    ids = np.random.default_rng(seed).integers(1, 40, (4, 7)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0, "labels": ids[:, 0] % 3}


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def test_a_batch_that_is_not_finite_says_nothing_of_units():
    """Found by review: one made all scores NaN, which rank as the highest, in the order of indices."""
    model, groups = TaskModel(CONFIG, "regression", 1), find_groups(CONFIG, (HEAD, ROW))
    good, bad = ({**batch(0), "labels": np.full(4, label, np.float32)} for label in (0.5, np.inf))
    params = init_params(model, 0)
    alone, beside = (fisher_scores(model, groups, params, batches) for batches in ([good], [good, bad]))
    assert all(np.any(np.asarray(value)) for value in alone.values())
    jax.tree.map(np.testing.assert_array_equal, beside, alone)


@pytest.mark.parametrize("granularities", [(HEAD, ROW), (block((8, 4)),)], ids=["heads and rows", "tiles"])
def test_fisher_scores_are_squared_gradients_along_the_units(params, granularities):
    """A mask scales its weights, so its gradient is the sum of weight times gradient: squared, and summed by batch."""
    groups, batches = find_groups(CONFIG, granularities), [batch(0), batch(1)]

    def loss(params, batch):
        logits = run_model(MODEL, params, batch).logits
        return task_loss(logits, batch["labels"], MODEL.kind, batch["attention_mask"])

    def along(group, gradient):
        total = 0.0
        for leaf in group.leaves:
            scaled = np.asarray(at(params, leaf) * at(gradient, leaf))
            if len(group.units) == 2:
                rows, columns = group.units
                scaled = scaled.reshape(rows, scaled.shape[0] // rows, columns, -1).sum((1, 3))
            else:
                scaled = scaled.reshape(*scaled.shape[:-1], group.units[0], -1).sum(-1)
                scaled = scaled.reshape(-1, group.units[0]).sum(0)
            total = total + scaled
        return total

    gradients = [jax.jit(jax.grad(loss))(params, each) for each in batches]
    found = fisher_scores(MODEL, groups, params, batches)
    assert found.keys() == {g.name for g in groups}
    for group in groups:
        wanted = sum(along(group, gradient) ** 2 for gradient in gradients)
        np.testing.assert_allclose(found[group.name], wanted, rtol=2e-5)


def test_a_unit_that_nothing_reads_scores_least(params):
    params = jax.tree.map(lambda x: x, params)
    output = params["bert"]["encoder"]["layer_0"]["ffn"]["output"]
    output["kernel"] = output["kernel"].at[5].set(0.0)
    scores = fisher_scores(MODEL, find_groups(CONFIG, (HEAD, ROW)), params, [batch(2)])["layer_0/ffn"]
    assert scores[5] == 0.0
    assert int(jnp.sum(scores == 0.0)) == 1


def test_even_ranks_keep_the_order():
    scores = {"a": jnp.asarray([[3e-9, 1.0], [1e-3, 0.0]]), "b": jnp.asarray([0.5, 7.0])}
    found = evenly_ranked(scores, -0.5, 0.5)
    np.testing.assert_allclose(found["a"], [[-0.3, 0.3], [-0.1, -0.5]], atol=1e-6)
    np.testing.assert_allclose(found["b"], [0.1, 0.5], atol=1e-6)


@pytest.mark.parametrize("tiles", [None, (16, 16)], ids=["heads and rows", "rounded to tiles"])
def test_a_score_for_a_parameter_counts_all_that_leaves_with_a_unit(tiles):
    groups = find_groups(CONFIG, (HEAD, ROW))
    d, inner, head = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.head_dim
    found = per_parameter({g.name: jnp.ones(g.units) for g in groups}, HeadRowCost(CONFIG, groups, tiles))
    prices = {name.removeprefix("layer_0/"): 1 / float(value[0]) for name, value in found.items() if "_0/" in name}
    assert prices == pytest.approx(
        {
            "attention": head * (4 * d + 3),  # Q, K, V with their biases, and O's inputs
            "attention_output": d + 1,
            "ffn": 2 * d + 1,
            "ffn_output": inner + 1,
        }
    )


def test_of_units_worth_the_same_the_cheaper_rank_higher_in_one_order():
    groups = find_groups(CONFIG, (HEAD, ROW))
    equal = {g.name: jnp.ones(g.units) for g in groups}
    found = first_scores(equal, HeadRowCost(CONFIG, groups), 0.25, 0.75, one_order=True)
    # 17 weights of a row of O, 33 of an FFN unit, 33 of a row of FC2, 8 * (4 * 16 + 3) of a head.
    heads, rows, *others = (np.asarray(found[f"layer_0/{name}"]) for name in NAMES)
    assert heads.max() < min(each.min() for each in others)
    assert rows.min() > max(each.max() for each in others)
    together = np.sort(np.concatenate(list(found.values())))
    np.testing.assert_allclose(together, np.linspace(0.25, 0.75, together.size), atol=1e-6)
    alone = first_scores(equal, HeadRowCost(CONFIG, groups), 0.25, 0.75, one_order=False)
    for value in alone.values():
        np.testing.assert_allclose(value, np.linspace(0.25, 0.75, value.size), atol=1e-6)
