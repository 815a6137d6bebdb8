"""The published classes' own numbers: every key class of the shared reference file."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.models.tasks import TaskModel
from mlprune_jax.pruning.binarize import binarize
from mlprune_jax.pruning.density import BlockCost, HeadRowCost, density, encoder_size
from mlprune_jax.pruning.granularity import HEAD, ROW, block, find_groups
from mlprune_jax.pruning.masks import apply_masks, as_bool, compute_masks, masks_keeping, spread
from mlprune_jax.pruning.regularizer import adaptive_strength, density_penalty
from mlprune_jax.pruning.shrink import shrink
from tests.masks import count_kept

CONFIG = ModelConfig(
    vocab_size=120,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)

BLOCK = (16, 16)
TOPK = ("scores", "threshold", "mask", "upstream", "score_grad", "threshold_grad")
TORCH_MATRIX = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "ffn/intermediate": "intermediate.dense",
    "ffn/output": "output.dense",
}
SCORE_OWNER = {"attention": "attention/query", "attention_output": "attention/output", "ffn": "ffn/intermediate",
               "ffn_output": "ffn/output"}  # fmt: skip


@pytest.fixture(scope="module")
def reference(shared):
    return np.load(shared / "reference" / "masked_bert_public.npz")


def close(actual, wanted, scale=None):
    """The bar: 1e-5 of the array's largest value (a threshold's gradient: of the sum of |g * mask|)."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    assert np.abs(actual - wanted).max() <= 1e-5 * (np.abs(wanted).max() if scale is None else scale)


def params_from(reference, stage):
    """A stage's parameters in our tree; the blocks' stage has its encoder only and borrows the rest from stage 1."""
    flat = {}
    for key in reference.files:
        prefix, _, name = key.partition("/")
        if prefix not in ("stage1.state", f"{stage}.state") or "mask_scores" in name or "threshold" in name:
            continue
        if prefix != f"{stage}.state" and ".encoder." in name:
            continue
        flat[_our_path(name)] = (
            reference[key].T if name.endswith("weight") and "embeddings" not in name else reference[key]
        )
    return unflatten_dict(flat)


def _our_path(name):
    *owner, kind = name.split(".")
    owner = ".".join(owner)
    if "LayerNorm" in owner:
        kind = {"weight": "scale"}.get(kind, kind)
    elif "embeddings" in owner:
        kind = "embedding"
    else:
        kind = {"weight": "kernel"}.get(kind, kind)
    if owner.startswith("bert.encoder.layer."):
        index, rest = owner.removeprefix("bert.encoder.layer.").split(".", 1)
        ours = {v: k for k, v in TORCH_MATRIX.items()} | {
            "attention.output.LayerNorm": "attention/norm", "output.LayerNorm": "ffn/norm"}  # fmt: skip
        return ("bert", "encoder", f"layer_{index}", *ours[rest].split("/"), kind)
    table = {
        "bert.embeddings.word_embeddings": "bert/embeddings/word",
        "bert.embeddings.position_embeddings": "bert/embeddings/position",
        "bert.embeddings.token_type_embeddings": "bert/embeddings/token_type",
        "bert.embeddings.LayerNorm": "bert/embeddings/norm",
        "bert.pooler.dense": "bert/pooler",
        "classifier": "head",
    }
    return (*table[owner].split("/"), kind)


def torch_name(group):
    layer, _, rest = group.name.partition("/")
    return f"bert.encoder.layer.{layer.removeprefix('layer_')}.{TORCH_MATRIX[SCORE_OWNER.get(rest, rest)]}"


def scores_from(reference, groups, suffix, stage):
    """Scores and thresholds; tile scores are stored row-major over (out, in)."""
    scores, thresholds = {}, {}
    for group in groups:
        state = f"{stage}.state/{torch_name(group)}"
        kind = "head" if group.unit == (64,) else "row"
        name = suffix or ("head_mask_scores" if kind == "head" else "mask_scores")
        scores[group.name] = jnp.asarray(reference[f"{state}.{name}"].reshape(group.units[::-1]).T)
        thresholds[group.name] = jnp.asarray(reference[f"{state}.threshold_{'block' if suffix else kind}"][0])
    return scores, thresholds


def batch_of(reference):
    return [jnp.asarray(reference[k], jnp.int32) for k in ("input_ids", "attention_mask", "token_type_ids")]


def loss_and_outputs(config, groups, inputs, labels, trained):
    params, scores, thresholds = trained
    masked = apply_masks(params, compute_masks(groups, scores, thresholds))
    outputs = TaskModel(config, "classification", 3).apply({"params": masked}, *inputs, hidden=True, attention=True)
    log_p = jax.nn.log_softmax(outputs.logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1)), outputs


@pytest.fixture(scope="module")
def stage1(reference):
    groups = find_groups(CONFIG, (HEAD, ROW))
    params = params_from(reference, "stage1")
    scores, thresholds = scores_from(reference, groups, "", "stage1")
    labels = jnp.asarray(reference["labels"], jnp.int32)
    with jax.default_matmul_precision("highest"):
        function = partial(loss_and_outputs, CONFIG, groups, batch_of(reference), labels)
        (loss, outputs), grads = jax.jit(jax.value_and_grad(function, has_aux=True))((params, scores, thresholds))
    return groups, params, scores, thresholds, loss, outputs, grads


def test_stage1_outputs_and_gradients(reference, stage1):
    groups, _, _, _, loss, outputs, (weight_grads, score_grads, threshold_grads) = stage1
    close(loss, reference["stage1.loss"])
    close(outputs.logits, reference["stage1.logits"])
    for i, state in enumerate(outputs.encoded.hidden_states):
        close(state, reference[f"stage1.hidden/{i}"])
    for i, attention in enumerate(outputs.encoded.attentions):
        close(attention, reference[f"stage1.attention/{i}"])
    for group in groups:
        name = f"stage1.grad/{torch_name(group)}"
        kind = "head" if group.unit == (64,) else "row"
        scores = "head_mask_scores" if kind == "head" else "mask_scores"
        wanted = reference[f"{name}.{scores}"][:, 0]
        mask = reference[f"stage1.mask/{_mask_key(group)}"]
        close(score_grads[group.name], wanted)
        close(threshold_grads[group.name], reference[f"{name}.threshold_{kind}"][0], np.abs(wanted * mask).sum())
    layer = weight_grads["bert"]["encoder"]["layer_0"]
    prefix = "stage1.grad/bert.encoder.layer.0."
    close(layer["attention"]["query"]["kernel"].T, reference[prefix + "attention.self.query.weight"])
    close(layer["ffn"]["output"]["kernel"].T, reference[prefix + "output.dense.weight"])


def _mask_key(group):
    layer, _, part = group.name.partition("/")
    names = {"attention": "attn", "attention_output": "attn_out", "ffn": "ffn_in", "ffn_output": "ffn_out"}
    return f"{layer.removeprefix('layer_')}.{names[part]}"


def test_stage1_masks_and_removal(reference, stage1):
    groups, params, scores, thresholds, *_ = stage1
    masks = as_bool(compute_masks(groups, scores, thresholds))
    for group in groups:
        leaf = flatten_dict(masks)[group.leaves[0]]
        np.testing.assert_array_equal(leaf, reference[f"stage1.mask/{_mask_key(group)}"].astype(bool))
    smaller, config = shrink(params, masks, CONFIG)
    for i in range(2):
        layer = smaller["bert"]["encoder"][f"layer_{i}"]
        kernels = [
            layer["attention"]["query"],
            layer["attention"]["output"],
            *(layer["ffn"][n] for n in ("intermediate", "output")),
        ]
        np.testing.assert_array_equal([k["kernel"].shape[::-1] for k in kernels], reference[f"stage1.sliced_shape/{i}"])
    assert encoder_size(config) == reference["stage1.sliced_encoder_params"]
    assert HeadRowCost(CONFIG, groups).count(count_kept(groups, masks)) == reference["stage1.sliced_encoder_params"]
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(TaskModel(config, "classification", 3).apply)({"params": smaller}, *batch_of(reference))
    close(outputs.logits, reference["stage1.sliced_logits"])


@pytest.fixture(scope="module")
def stage2(reference, stage1):
    groups, _, scores, thresholds, *_ = stage1
    cost = HeadRowCost(CONFIG, groups, BLOCK)
    kept = cost.round_up(count_kept(groups, compute_masks(groups, scores, thresholds)))
    return cost, masks_keeping(groups, scores, kept), kept


def test_rounding_to_tiles(reference, stage1, stage2):
    groups, params, *_ = stage1
    _, masks, kept = stage2
    flat = flatten_dict(masks)
    for group in groups:
        if group.name.endswith("_output"):
            np.testing.assert_array_equal(
                flat[group.leaves[0]], reference[f"stage2.row_mask/{_mask_key(group)}"].astype(bool)
            )
    smaller, _ = shrink(params, masks, CONFIG)
    wanted = flatten_dict(params_from(reference, "stage2"))
    for path, value in flatten_dict(smaller).items():
        assert value.shape == wanted[path].shape, path
    assert density(HeadRowCost(CONFIG, groups, BLOCK), kept) == encoder_size(shrink(params, masks, CONFIG)[1]) / 264_960


def test_stage2(reference, stage1, stage2):
    _, params, *_ = stage1
    _, masks, _ = stage2
    _, config = shrink(params, masks, CONFIG)
    groups = find_groups(config, (block(BLOCK),))
    params = params_from(reference, "stage2")
    scores, thresholds = scores_from(reference, groups, "block_mask_scores", "stage2")
    labels = jnp.asarray(reference["labels"], jnp.int32)
    with jax.default_matmul_precision("highest"):
        function = partial(loss_and_outputs, config, groups, batch_of(reference), labels)
        (loss, outputs), grads = jax.jit(jax.value_and_grad(function, has_aux=True))((params, scores, thresholds))
    close(loss, reference["stage2.loss"])
    close(outputs.logits, reference["stage2.logits"])
    tiles = {g.name: binarize(scores[g.name], thresholds[g.name]) for g in groups}
    for group in groups:
        name = torch_name(group)
        mask = reference[f"stage2.block_mask/{name}"]
        np.testing.assert_array_equal(tiles[group.name].T, mask)
        wanted = reference[f"stage2.grad/{name}.block_mask_scores"].ravel()
        close(grads[1][group.name].T.ravel(), wanted)
        scale = np.abs(wanted * mask.ravel()).sum()
        close(grads[2][group.name], reference[f"stage2.grad/{name}.threshold_block"][0], scale)
    cost = BlockCost(config, groups)
    close(density_penalty(cost.budget(thresholds), 0.3), reference["stage2.reg@0.3"][0])
    assert cost.count({g.name: int(tiles[g.name].sum()) for g in groups}) == reference["stage2.encoder_params"]
    folded = apply_masks(params, spread(groups, tiles))
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(TaskModel(config, "classification", 3).apply)({"params": folded}, *batch_of(reference))
    close(outputs.logits, reference["stage2.folded_logits"])


def test_binarizer(reference):
    cases = {key.removeprefix("topk/").split(".")[0] for key in reference.files if key.startswith("topk/")}
    assert len(cases) == 35
    for case in cases:
        get = {name: reference[f"topk/{case}.{name}"] for name in TOPK}
        mask, pullback = jax.vjp(binarize, jnp.asarray(get["scores"]), jnp.asarray(get["threshold"][0]))
        np.testing.assert_array_equal(mask, get["mask"])
        score_grad, threshold_grad = pullback(jnp.asarray(get["upstream"]))
        close(score_grad, get["score_grad"])
        close(threshold_grad, get["threshold_grad"][0], np.abs(get["upstream"] * get["mask"]).sum())


def test_penalty(reference):
    config = ModelConfig()
    groups = find_groups(config, (HEAD, ROW))
    cost = HeadRowCost(config, groups)

    @jax.jit
    def penalty(thresholds, target):
        named = {g.name: thresholds[i // 4, i % 4] for i, g in enumerate(groups)}
        return density_penalty(cost.budget(named), target)

    cases = {key.removeprefix("reg/").rpartition(".")[0] for key in reference.files if key.startswith("reg/")}
    assert len(cases) == 24
    for case in cases:
        target = float(case.split("@")[1])
        value, gradient = jax.value_and_grad(penalty)(jnp.asarray(reference[f"reg/{case}.thresholds"]), target)
        close(value, reference[f"reg/{case}.value"])
        close(adaptive_strength(value, target), reference[f"reg/{case}.lambda"])
        close(gradient, reference[f"reg/{case}.grad"])
