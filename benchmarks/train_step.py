"""Cost of pruning while training: the masked step over the plain step, BERT-base, and how long they compile.

    python benchmarks/train_step.py [--json benchmarks/results/train_step.json] [--rounds 5]

BERT-base geometry, random weights, batch 8 x 128, float32, embeddings frozen in both, no teacher. The two steps are
timed in turn, round by round, so that a slow minute of a shared machine falls on both; ratios are of medians.
``--compile`` measures instead how long the first step with a teacher takes; run it twice to see the compile cache.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from describe import describe

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import HeadRowStage, PruneStage, TrainSettings
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pruning.density import BlockCost, Cost, HeadRowCost, counted_budget
from mlprune_jax.pruning.granularity import HEAD, ROW, block, find_groups
from mlprune_jax.pruning.masks import init_scores, init_thresholds
from mlprune_jax.training.optimizer import plain_optimizer, pruning_optimizer
from mlprune_jax.training.state import Fixed, init_state, split_frozen
from mlprune_jax.training.step import make_train_step

BATCH, LENGTH = 8, 128
CONFIG = ModelConfig()
MODEL = TaskModel(CONFIG, "classification", 2)
KEY = jax.random.key(0)


def make_batch(rows=BATCH):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, CONFIG.vocab_size, (rows, LENGTH)).astype(np.int32)
    zeros = np.zeros_like(ids)
    labels = rng.integers(0, 2, rows).astype(np.int32)
    return {"input_ids": ids, "attention_mask": zeros + 1, "token_type_ids": zeros, "labels": labels}


def prepare(params, cost: Cost | None, teacher=None):
    """A step and its state: plain without a cost, masked with one."""
    trained, frozen = split_frozen(params, freeze_embeddings=True)
    tree, groups = {"params": trained}, ()
    if cost is None:
        optimizer = plain_optimizer(TrainSettings(), 1000)
    else:
        groups = cost.groups
        stage: PruneStage = HeadRowStage(densities="learned")
        optimizer = pruning_optimizer(stage, 1000, counted_budget(cost), 0.5)
        tree |= {"scores": init_scores(groups, "kaiming_uniform"), "thresholds": init_thresholds(groups, 1.0)}
    options = {"teacher": MODEL, "distillation": Distillation()} if teacher is not None else {}
    step = make_train_step(MODEL, optimizer, groups=groups, **options)
    return step, init_state(tree, optimizer), Fixed(frozen, None, teacher)


def timed(step, state, fixed, batch):
    started = time.perf_counter()
    state, metrics = step(state, fixed, batch, KEY)
    jax.block_until_ready((state, metrics))
    return state, time.perf_counter() - started


def compare(rounds):
    params, batch = init_params(MODEL, 0), make_batch()
    costs = {
        "plain": None,
        "head_row": HeadRowCost(CONFIG, find_groups(CONFIG, (HEAD, ROW))),
        "block_32x32": BlockCost(CONFIG, find_groups(CONFIG, (block((32, 32)),))),
        "block_16x16": BlockCost(CONFIG, find_groups(CONFIG, (block((16, 16)),))),
    }
    runs = {name: prepare(params, cost) for name, cost in costs.items()}
    states = {name: timed(*run, batch)[0] for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (step, _, fixed) in runs.items():
            states[name], taken = timed(step, states[name], fixed, batch)
            seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # The ratio of neighbours in one round is what a drifting machine disturbs least.
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, seconds["plain"], strict=True))
        for name, values in seconds.items()
    }
    return {"median_seconds": medians, "ratio_to_plain": ratios, "seconds": seconds}


def compile_time():
    params = init_params(MODEL, 0)
    cost = HeadRowCost(CONFIG, find_groups(CONFIG, (HEAD, ROW)))
    step, state, fixed = prepare(params, cost, jax.tree.map(jnp.asarray, params))
    started = time.perf_counter()
    step.lower(state, fixed, make_batch(), KEY).compile()
    return {"trace_and_compile_seconds": time.perf_counter() - started}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    result = describe() | {"batch": [BATCH, LENGTH]} | (compile_time() if args.compile else compare(args.rounds))
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
