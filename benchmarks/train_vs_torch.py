"""Training steps of this library and of torch + transformers, in turn in one process: BERT-base.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 OMP_WAIT_POLICY=passive \\
        python benchmarks/train_vs_torch.py [--rounds 5] [--json FILE]

Needs torch beside this library. 128 tokens, batch 8 on a CPU and 32 on a GPU, random weights and tokens, dropout on,
AdamW, clip at 1.0. "dense": all parameters trained, no teacher. "pruning": head and row masks from scores by learned
thresholds, frozen embeddings, a teacher of the same size, hidden states and attention maps compared: the published
recipe's step, written anew for both. Torch runs in float32 on a CPU; on a GPU in bfloat16 by autocast, as it comes and
compiled. The first variable is for both: without it, what page faults cost differs between the two (docs/long-runs.md).
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import torch  # type: ignore[import-not-found]  # is no dependency
from describe import describe
from torch import nn  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]
from train_step import BATCH, CONFIG, KEY, LENGTH, make_batch
from transformers import BertConfig, BertForSequenceClassification

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.settings import HeadRowStage, TrainSettings
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pruning.density import HeadRowCost, counted_budget
from mlprune_jax.pruning.granularity import HEAD, ROW, find_groups
from mlprune_jax.pruning.masks import init_scores, init_thresholds
from mlprune_jax.training.optimizer import plain_optimizer, pruning_optimizer
from mlprune_jax.training.state import Fixed, init_state, split_frozen
from mlprune_jax.training.step import make_train_step
from pallas_kernels.device import hardware_name


class TopK(torch.autograd.Function):
    """0/1 of the highest scores; gradients pass straight to scores and to the logit of the kept fraction."""

    @staticmethod
    def forward(ctx, scores, logit):
        kept = int(torch.ceil(torch.sigmoid(logit) * scores.numel()))
        mask = torch.zeros_like(scores)
        mask[torch.topk(scores, kept).indices] = 1.0
        ctx.save_for_backward(mask)
        return mask

    @staticmethod
    def backward(ctx, upstream):
        (mask,) = ctx.saved_tensors
        return upstream, (upstream * mask).sum()


class Pruned(nn.Module):
    """A linear layer whose output features are masked, ``group`` of them by each score."""

    def __init__(self, linear, scores, logit, group=1):
        super().__init__()
        self.linear, self.group = linear, group
        self.scores, self.logit = scores, logit

    def forward(self, x):
        mask = TopK.apply(self.scores, self.logit).repeat_interleave(self.group)
        return functional.linear(x, self.linear.weight * mask[:, None], self.linear.bias * mask)


def torch_model(attention):
    config = BertConfig.from_dict({"attn_implementation": attention, "num_labels": 2})
    return BertForSequenceClassification(config)


def mask_layers(model):
    """Replace every encoder matrix; returns the scores and thresholds."""

    def pair(units):
        return nn.Parameter(torch.rand(units) * 2 - 1), nn.Parameter(torch.tensor(1.0))

    learned = []
    for layer in model.bert.encoder.layer:
        attention = layer.attention
        scores, logit = pair(CONFIG.num_attention_heads)
        learned += [scores, logit]
        for name in ("query", "key", "value"):
            setattr(attention.self, name, Pruned(getattr(attention.self, name), scores, logit, CONFIG.head_dim))
        for owner, units in ((attention.output, 768), (layer.intermediate, 3072), (layer.output, 768)):
            scores, logit = pair(units)
            learned += [scores, logit]
            owner.dense = Pruned(owner.dense, scores, logit)
    return learned


def density(learned):
    """The published budget of step 1 from thresholds in the order attention, output, FFN in, FFN out."""
    logits = torch.sigmoid(torch.stack(learned[1::2])).reshape(-1, 4)
    a, o, f1, f2 = logits.unbind(1)
    return (3 * a + a * o + 4 * f1 + 4 * f1 * f2).sum() / (12 * len(logits))


def torch_step(batch, *, pruning, device="cpu", compiled=False):
    half = torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu")
    model = torch_model("eager" if pruning else "sdpa").train()
    inputs = {k: torch.from_numpy(v).long().to(device) for k, v in batch.items()}
    if not pruning:
        trained = list(model.to(device).parameters())

        def loss():
            return model(**inputs).loss

    else:
        teacher = torch_model("eager").eval().to(device)
        model.bert.embeddings.requires_grad_(False)
        learned = mask_layers(model)
        trained = [p for p in model.to(device).parameters() if p.requires_grad]
        wanted = {"output_hidden_states": True, "output_attentions": True}

        def loss():
            out = model(**inputs, **wanted)
            with torch.no_grad():
                target = teacher(**inputs, **wanted)
            logit = functional.kl_div(
                functional.log_softmax(out.logits / 2, -1),
                functional.softmax(target.logits / 2, -1),
                reduction="batchmean",
            )
            student_maps = (*out.hidden_states, *out.attentions)
            pairs = zip(student_maps, (*target.hidden_states, *target.attentions), strict=True)
            distance = sum(functional.mse_loss(s, t) for s, t in pairs)
            above = torch.clamp(density(learned) - 0.5, min=0.0) ** 2
            return 0.9 * (4 * logit + distance) + 0.1 * out.loss + 50.0 * above

    optimizer = torch.optim.AdamW(trained, lr=3e-5, weight_decay=0.0, fused=True)
    forward = torch.compile(loss) if compiled else loss

    def step():
        optimizer.zero_grad()
        with half:
            value = forward()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return value.item()

    return step


def jax_step(batch, *, pruning, dtype="float32"):
    model = TaskModel(CONFIG, "classification", 2, getattr(jax.numpy, dtype))
    params = init_params(model, 0)
    if not pruning:
        optimizer = plain_optimizer(TrainSettings(), 1000)
        step, fixed = make_train_step(model, optimizer), Fixed({})
        state = init_state({"params": params}, optimizer)
    else:
        groups = find_groups(CONFIG, (HEAD, ROW))
        stage = HeadRowStage(densities="learned")
        optimizer = pruning_optimizer(stage, 1000, counted_budget(HeadRowCost(CONFIG, groups)), 0.5)
        trained, frozen = split_frozen(params, freeze_embeddings=True)
        tree = {"params": trained, "scores": init_scores(groups, "kaiming_uniform")}
        state = init_state(tree | {"thresholds": init_thresholds(groups, 1.0)}, optimizer)
        step = make_train_step(model, optimizer, groups=groups, teacher=model, distillation=Distillation())
        fixed = Fixed(frozen, None, jax.tree.map(np.asarray, params))
    fixed = jax.device_put(fixed)
    held = [state]

    def call():
        held[0], metrics = step(held[0], fixed, batch, KEY)
        return float(jax.block_until_ready(metrics)["loss"])

    return call


def steps_of(kind, batch, device):
    """The steps to compare, torch's first: the others are measured against it."""
    pruning = kind == "pruning"
    if device == "cpu":
        steps = {"torch float32": torch_step(batch, pruning=pruning), "jax float32": jax_step(batch, pruning=pruning)}
        if "avx512_bf16" in hardware_name():  # elsewhere it is emulated
            steps["jax bfloat16"] = jax_step(batch, pruning=pruning, dtype="bfloat16")
        return steps
    # The published classes' masks are Python functions of tensors, which torch cannot compile whole; the rest it can.
    return {
        "torch bfloat16": torch_step(batch, pruning=pruning, device=device),
        "torch bfloat16 compiled": torch_step(batch, pruning=pruning, device=device, compiled=True),
        "jax bfloat16": jax_step(batch, pruning=pruning, dtype="bfloat16"),
    }


def compare(kind, batch, device, rounds):
    steps = steps_of(kind, batch, device)
    for step in steps.values():
        step()
        step()
    seconds, faults = ({name: [] for name in steps} for _ in range(2))
    for _ in range(rounds):
        for name, step in steps.items():
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            step()
            seconds[name].append(time.perf_counter() - started)
            faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    first = next(iter(steps))
    ratios = {
        n: statistics.median(t / own for t, own in zip(seconds[first], s, strict=True)) for n, s in seconds.items()
    }
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    told = {"median_seconds": medians, "median_page_faults": {n: statistics.median(f) for n, f in faults.items()}}
    return told | {f"times_as_fast_as_{first}": ratios, "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    rows = BATCH if device == "cpu" else 32
    batch = make_batch(rows)
    result = describe() | {"batch": [rows, LENGTH], "torch": torch.__version__}
    for kind in ("dense", "pruning"):
        result[kind] = compare(kind, batch, device, args.rounds)
        print(kind, json.dumps(result[kind], indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
