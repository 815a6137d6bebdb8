"""End to end: BERT-base geometry, dense against pruned to 20 %, and on a CPU against torch and ONNX Runtime.

    python benchmarks/whole_model.py [--dtype float32] [--batch 1,8,32] [--length 128] [--splits] [--others]
        [--only MODEL ...] [--table FILE] [--threads 1] [--json FILE]

Random weights and masks. Pruned models are cut as the pipeline cuts them, with equal thresholds everywhere and random
scores: heads/rows alone to 0.2 of the encoder's parameters, or heads/rows to 0.5 and then blocks to 0.2 in all.
``--splits`` compares other first steps instead, for the same 0.2, and ``--only`` takes models by name, such as
"heads/rows 0.2 in multiples of 64".

``--others`` sets the dense and the head/row model beside torch and ONNX Runtime, on a CPU where they are installed, and
beside their own exported files in the latter: in runs of its own, as those threads go on spinning after a call and
would disturb whatever comes next. On a GPU the baseline is this library's dense model in the same dtype, with cuDNN's
attention, and ``--table`` picks products by measured costs of this device other than its own table's. All calls of one
batch size are timed in turn, round by round; a ratio is the median of the ratios within one round. ``--json FILE``
stores the results.
"""

import argparse
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
from pallas_kernels import load_table
from pallas_kernels.device import hardware_name
from pallas_kernels.timing import measure_interleaved, ratio

TARGET = 0.2
HEAD_ROW = f"heads/rows {TARGET}"
IN_TILES = " in multiples of "
RUN_DENSE = ", run dense"
TWO_STEP = rf"[0-9.]+, then (?P<side>[0-9]+)x(?P=side) to {TARGET}({RUN_DENSE})?"
NAMES = f"dense|{HEAD_ROW}({IN_TILES}[1-9][0-9]*)?|{TWO_STEP}"
CALLS = 8
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


def models(names):
    """The models of these names, with their densities."""
    config = ModelConfig()
    dense = Served(config, random_params(config, 2, "classification"), None, "classification")
    found = {}
    for name in names:
        if name == "dense":
            found[name] = (dense, 1.0)
        elif name.startswith(HEAD_ROW):
            side = int(name.removeprefix(HEAD_ROW).removeprefix(IN_TILES) or 0)
            found[name] = head_row(dense, TARGET, (side, side) if side else None)
        else:
            first, tile = name.split(" to ")[0].split(", then ")
            model, kept = two_step(dense, float(first), tuple(map(int, tile.split("x"))))
            found[name] = (model._replace(masks=None) if name.endswith(RUN_DENSE) else model, kept)
    return found


def names_of(splits, others):
    if others:
        return ["dense", HEAD_ROW]
    firsts = ("1", "0.7", "0.5", "0.35", "0.27") if splits else ("0.5",)
    pairs = [f"{first}, then {side}x{side} to {TARGET}" for first in firsts for side in (32, 64)]
    blocks = pairs if splits else [name + ending for name in pairs for ending in ("", RUN_DENSE)]
    return ["dense", HEAD_ROW, *blocks]


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


def in_threads(call, threads):
    """Threads that make `CALLS` each, as a server's do: on a GPU the host then works while the device computes."""
    if threads == 1:
        return call
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda _: [call() for _ in range(CALLS)], range(threads)))


def measure(found, dtype, batch, length, table, threads, others):
    rng = np.random.default_rng(0)
    ids, full = rng.integers(0, 30522, (batch, length), np.int32), np.full(batch, length, np.int32)
    compiled = {
        name: compile_model(model, batch_sizes=[batch], lengths=[length], dtype=dtype, table=table)
        for name, (model, _) in found.items()
    }
    calls = {name: in_threads(lambda model=model: model.logits(ids, full), threads) for name, model in compiled.items()}
    counted = 1 if threads == 1 else threads * CALLS
    if others:
        calls |= other_runtimes(found, dtype, batch, length)
    timings = measure_interleaved(calls, rounds=ROUNDS.get(batch, 9))
    rows = {}
    for name, timing in timings.items():
        rows[name] = {
            "p50_ms": round(timing.p50 * 1e3 / counted, 2),
            "p90_ms": round(timing.p90 * 1e3 / counted, 2),
            "dense_over_this": round(ratio(timings["dense"], timing), 3),
        }
        if name in found:
            products = Counter(d.choice.implementation for d in compiled[name].decisions(batch, length))
            memory = compiled[name].memory(batch, length)
            rows[name] |= {"density": round(found[name][1], 4), "products": dict(products), "memory": memory}
        print(batch, f"{name:28}", rows[name], flush=True)
    if not others:
        return {"rows": rows}
    pruned = timings[HEAD_ROW]
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
    parser.add_argument("--only", nargs="+", metavar="MODEL", help=f'dense "{HEAD_ROW}{IN_TILES}16", for example')
    parser.add_argument("--table", type=Path, help="measured costs to pick products by; otherwise this device's own")
    parser.add_argument("--threads", type=int, default=1, help="that call at once; times are then of a call's share")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = args.only or names_of(args.splits, args.others)
    if unknown := [name for name in names if not re.fullmatch(NAMES, name)]:
        parser.error(f"--only knows no {unknown[0]!r}")
    if "dense" not in names or (args.others and HEAD_ROW not in names):
        parser.error("the dense model, and with --others that of heads and rows, is what all others are set beside")
    if args.threads < 1 or (args.threads > 1 and args.others):
        parser.error("--threads takes 1 or more, and with --others 1 alone")
    table = load_table(args.table) if args.table else None
    if table is not None and (not table.entries or table.hardware != hardware_name()):
        parser.error(f"{args.table} holds {len(table.entries)} products of {table.hardware}: it decides nothing here")
    result = describe() | {"dtype": args.dtype, "length": args.length, "threads": args.threads, "batches": {}}
    found = models(names)
    for batch in map(int, args.batch.split(",")):
        result["batches"][batch] = measure(found, args.dtype, batch, args.length, table, args.threads, args.others)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
