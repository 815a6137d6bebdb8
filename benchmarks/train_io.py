"""What training waits for besides the device: saves of a BERT-base state, batches, and the dispatch of a step.

    python benchmarks/train_io.py [--saves 5] [--json FILE]

Saves: the time for which `Checkpoints.save` blocks the loop, with the state of dense BERT-base fine-tuning (parameters
and both Adam moments), while the device computes steps of another model; a save that is still being written is waited
for before the next, and that is not counted. Batches: how many a second `Batches.iterate` makes alone, of 20,000 random
examples of up to 128 tokens, 32 rows each. Dispatch: the time of a whole step of a BERT with as many arrays as
BERT-base (12 layers) but 16 wide, on 2 x 8 tokens: more than what several steps in one call could save of each.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from describe import describe
from train_step import CONFIG, MODEL

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.config.settings import TrainSettings
from mlprune_jax.data.batches import Batches
from mlprune_jax.data.encode import Encoded
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.training.checkpoint import Checkpoints
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.optimizer import plain_optimizer
from mlprune_jax.training.state import Fixed, init_state
from mlprune_jax.training.step import make_train_step


def saves(count):
    optimizer = plain_optimizer(TrainSettings(), 1000)
    state = Layout().place(init_state({"params": init_params(MODEL, 0)}, optimizer))
    work = jax.jit(lambda x: x @ x / 1000)
    x, folder = jnp.ones((1024, 1024)), Path(tempfile.mkdtemp())
    checkpoints = Checkpoints(folder, identity={}, keep=2)
    blocked, written = [], []
    for step in range(1, count + 1):
        x = work(x)
        started = time.perf_counter()
        checkpoints.save(step, state)
        blocked.append(time.perf_counter() - started)
        while not checkpoints.saved():
            x = work(x).block_until_ready()
        written.append(time.perf_counter() - started)
    checkpoints.close()
    shutil.rmtree(folder)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {"bytes": size, "blocked_seconds": blocked, "median": statistics.median(blocked), "written_seconds": written}


def batches(steps=2000):
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 129, 20_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(1, CONFIG.vocab_size, offsets[-1]).astype(np.int32)
    encoded = Encoded(ids, np.zeros_like(ids), offsets, np.zeros(len(lengths), np.int32), 0)
    made = Batches(encoded, batch_size=32, buckets=(32, 64, 128), seed=0)
    started = time.perf_counter()
    for _ in made.iterate(0, steps):
        pass
    return {"per_second": steps / (time.perf_counter() - started)}


def dispatch(calls=200):
    config = ModelConfig(hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=100)
    model, optimizer = TaskModel(config, "classification", 2), plain_optimizer(TrainSettings(), 1000)
    layout, ids = Layout(), np.ones((2, 8), np.int32)
    state = layout.place(init_state({"params": init_params(model, 0)}, optimizer))
    step = make_train_step(model, optimizer, out_shardings=(layout.shardings(state), layout.everywhere))
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0, "labels": np.zeros(2, np.int32)}
    key, fixed = layout.key(0), Fixed({})
    state, metrics = step(state, fixed, layout.batch(batch), key)
    started = time.perf_counter()
    for _ in range(calls):
        state, metrics = step(state, fixed, layout.batch(batch), key)
    jax.block_until_ready(metrics)
    return {"arrays": len(jax.tree.leaves(state)), "seconds_per_step": (time.perf_counter() - started) / calls}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = describe() | {"batches": batches(), "saves": saves(args.saves), "step": dispatch()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
