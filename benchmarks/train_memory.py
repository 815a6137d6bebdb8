"""Memory and time of the distilled masked step at BERT-base, with and without rematerialisation.

    python benchmarks/train_memory.py [--batch 32] [--steps 2] [--json FILE]

Heads and rows learned, embeddings frozen, teacher of the same size with hidden states and attention maps, length 128,
float32. Each form runs in a process of its own: its peak resident memory, the compiler's count of temporary buffers,
and the mean time of the steps after the first.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from describe import describe
from train_step import CONFIG, KEY, LENGTH

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.settings import HeadRowStage
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.pruning.density import HeadRowCost, counted_budget
from mlprune_jax.pruning.granularity import HEAD, ROW, find_groups
from mlprune_jax.pruning.masks import init_scores, init_thresholds
from mlprune_jax.training.optimizer import pruning_optimizer
from mlprune_jax.training.speed import peak_memory
from mlprune_jax.training.state import Fixed, init_state, split_frozen
from mlprune_jax.training.step import make_train_step

FORMS = {
    "kept": {},
    "rematerialized": {"rematerialize": True},
    "accumulated over 4 parts": {"accumulate": 4},
    "both": {"rematerialize": True, "accumulate": 4},
}


def measure(batch_size, steps, *, rematerialize=False, accumulate=1):
    student = TaskModel(CONFIG, "classification", 2, rematerialize=rematerialize)
    teacher = TaskModel(CONFIG, "classification", 2)
    groups = find_groups(CONFIG, (HEAD, ROW))
    stage = HeadRowStage(densities="learned")
    optimizer = pruning_optimizer(stage, 1000, counted_budget(HeadRowCost(CONFIG, groups)), 0.5)
    params = init_params(student, 0)
    trained, frozen = split_frozen(params, freeze_embeddings=True)
    tree = {"params": trained, "scores": init_scores(groups), "thresholds": init_thresholds(groups, 1.0)}
    state, fixed = init_state(tree, optimizer), Fixed(frozen, None, params)
    ids = np.random.default_rng(0).integers(1, CONFIG.vocab_size, (batch_size, LENGTH)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    batch["labels"] = np.zeros(batch_size, np.int32)
    options = {"teacher": teacher, "distillation": Distillation(), "accumulate": accumulate}
    compiled = make_train_step(student, optimizer, groups=groups, **options).lower(state, fixed, batch, KEY).compile()
    del trained, frozen, tree
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        state, metrics = compiled(state, fixed, batch, KEY)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return {
        "temporary_bytes": analysis.temp_size_in_bytes,
        "argument_bytes": analysis.argument_size_in_bytes,
        "peak_bytes_of_process": peak_memory(),
        "seconds_per_step": sum(seconds[1:]) / steps,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--form", choices=FORMS, help="of one process; all in turn if unset")
    args = parser.parse_args()
    if args.form:
        print(json.dumps(measure(args.batch, args.steps, **FORMS[args.form])))
        return
    result = describe() | {"batch": [args.batch, LENGTH], "forms": {}}
    for form in FORMS:
        command = [sys.executable, __file__, "--batch", str(args.batch), "--steps", str(args.steps), "--form", form]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result["forms"][form] = json.loads(done.stdout.splitlines()[-1])
        print(form, result["forms"][form], flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
