"""End to end: BERT-base geometry, dense against pruned to 20 %, and on a CPU against torch and ONNX Runtime.

    python benchmarks/whole_model.py [--dtype float32] [--batch 1,8,32] [--length 128] [--splits] [--others]

Random weights and masks. Pruned models are cut as the pipeline cuts them, with equal thresholds everywhere and random
scores: heads/rows alone to 0.2 of the encoder's parameters, or heads/rows to 0.5 and then blocks to 0.2 in all.
``--splits`` compares other first steps instead, for the same 0.2. ``--others`` sets the dense and the head/row model
beside torch and ONNX Runtime, on a CPU where they are installed, and beside their own exported files in the latter: in
runs of its own, as those threads go on spinning after a call and would disturb whatever comes next. On a GPU the
baseline is this library's dense model in the same dtype, with cuDNN's attention. All calls of one batch size are timed
in turn, round by round; a ratio is the median of the ratios within one round. ``--json FILE`` stores the results.
"""

import argparse
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
from baselines import baselines, exported
from describe import describe

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.inference.bench import random_params
from mlprune_jax.inference.runtime import Served, compile_model
from mlprune_jax.pruning.density import BlockCost, HeadRowCost, cut_to, density
from mlprune_jax.pruning.granularity import HEAD, ROW, block, find_groups
from mlprune_jax.pruning.masks import apply_masks, init_scores, masks_keeping
from mlprune_jax.pruning.shrink import shrink
from pallas_kernels.timing import measure_interleaved, ratio

TARGET = 0.2
ROUNDS = {1: 15, 8: 9, 32: 5}


def cut(cost, target, seed):
    """What the pipeline's final cut keeps with equal thresholds and random scores, and its density."""
    scores = init_scores(cost.groups, "kaiming_uniform", seed=seed)
    kept = cost.round_up(cut_to(cost, {group.name: 0.0 for group in cost.groups}, target))
    return jax.device_get(masks_keeping(cost.groups, scores, kept)), density(cost, kept)


def head_row(dense, target, tile=None):
    cost = HeadRowCost(dense.config, find_groups(dense.config, (HEAD, ROW)), tile)
    masks, found = cut(cost, target, 1)
    params, config = shrink(dense.params, masks, dense.config)
    return Served(config, params, None, "classification"), found


def two_step(dense, first, tile):
    """Heads and rows to ``first``, then tiles to `TARGET`, both of the dense encoder."""
    if first < 1:
        model, _ = head_row(dense, first, tile)
    else:
        model = dense
    cost = BlockCost(model.config, find_groups(model.config, (block(tile),)))
    masks, found = cut(cost, TARGET, 2)
    params = jax.tree.map(np.asarray, apply_masks(model.params, masks))
    return Served(model.config, params, masks, "classification"), found


def models(splits, others):
    config = ModelConfig()
    dense = Served(config, random_params(config, 2, "classification"), None, "classification")
    found = {"dense": (dense, 1.0), "heads/rows 0.2": head_row(dense, TARGET)}
    if others:
        return found
    for first in (1.0, 0.7, 0.5, 0.35, 0.27) if splits else (0.5,):
        for side in (32, 64):
            model, kept = two_step(dense, first, (side, side))
            name = f"{first:g}, then {side}x{side} to 0.2"
            found |= {name: (model, kept)}
            if not splits:
                found[f"{name}, run dense"] = (model._replace(masks=None), kept)
    return found


def other_runtimes(found, dtype, batch, length):
    """Baselines in the same dtype, and in float32 as well; our own models as exported ONNX files."""
    threads = os.cpu_count() or 1
    calls = baselines(dtype, batch, length, threads)
    if dtype != "float32":
        full = baselines("float32", batch, length, threads)
        calls |= {f"{name}, float32": call for name, call in full.items()}
    elif "onnxruntime" in calls:
        calls |= {f"{name}, exported": exported(model, batch, length, threads) for name, (model, _) in found.items()}
    return calls


def measure(found, dtype, batch, length, others):
    rng = np.random.default_rng(0)
    ids, full = rng.integers(0, 30522, (batch, length), np.int32), np.full(batch, length, np.int32)
    prepare = partial(compile_model, batch_sizes=[batch], lengths=[length], dtype=dtype)
    with ThreadPoolExecutor() as pool:  # on a GPU each takes the better part of a minute
        compiled = dict(zip(found, pool.map(prepare, (model for model, _ in found.values())), strict=True))
    calls = {name: (lambda model=model: model.logits(ids, full)) for name, model in compiled.items()}
    if others:
        calls |= other_runtimes(found, dtype, batch, length)
    timings = measure_interleaved(calls, rounds=ROUNDS.get(batch, 9))
    rows = {}
    for name, timing in timings.items():
        rows[name] = {
            "p50_ms": round(timing.p50 * 1e3, 2),
            "p90_ms": round(timing.p90 * 1e3, 2),
            "dense_over_this": round(ratio(timings["dense"], timing), 3),
        }
        if name in found:
            products = Counter(d.choice.implementation for d in compiled[name].decisions(batch, length))
            memory = compiled[name].memory(batch, length)
            rows[name] |= {"density": round(found[name][1], 4), "products": dict(products), "memory": memory}
        print(batch, f"{name:28}", rows[name], flush=True)
    if not others:
        return {"rows": rows}
    pruned = timings["heads/rows 0.2"]
    over = {name: round(ratio(timings[name], pruned), 3) for name in timings if name not in found}
    print(batch, "others over heads/rows 0.2:", over, flush=True)
    return {"rows": rows, "others_over_head_row": over}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--splits", action="store_true")
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = describe() | {"dtype": args.dtype, "length": args.length, "batches": {}}
    found = models(args.splits, args.others)
    for batch in map(int, args.batch.split(",")):
        result["batches"][batch] = measure(found, args.dtype, batch, args.length, args.others)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
