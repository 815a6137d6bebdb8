"""On a CPU, a batch as one call, as calls one after the other, and as calls side by side: what `calls.py` is built on.

    python benchmarks/calls.py [--batch 8] [--dtype float32] [--json FILE]

Four layers of BERT-base, length 128, dense, with a fifth of their heads and rows, and with heads and rows to 0.5 and
64x64 blocks to 0.2, those unrolled by `xla` and run dense. ``busy`` is processor time over wall time.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from describe import describe
from whole_model import TARGET, head_row, two_step

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.inference import calls
from mlprune_jax.inference.bench import random_params
from mlprune_jax.inference.runtime import Served, compile_model
from pallas_kernels.timing import measure_interleaved

LENGTH = 128


def models():
    config = ModelConfig(num_hidden_layers=4)
    dense = Served(config, random_params(config, 2, "classification"), None, "classification")
    blocks, _ = two_step(dense, 0.5, (64, 64))
    small, _ = head_row(dense, TARGET)
    return {
        "dense": (dense, None),
        "heads/rows 0.2": (small, None),
        "64x64 blocks": (blocks, "xla"),
        "64x64 blocks, run dense": (blocks._replace(masks=None), None),
    }


def busy(call, repeats):
    """Cores that a call keeps busy."""
    before, started = os.times(), time.perf_counter()
    for _ in range(repeats):
        call()
    after, wall = os.times(), time.perf_counter() - started
    return (after.user + after.system - before.user - before.system) / wall


def ways(model, implementation, batch, dtype):
    """Every way to cut the batch, by name."""
    rng = np.random.default_rng(0)
    ids, full = rng.integers(0, 30522, (batch, LENGTH), np.int32), np.full(batch, LENGTH, np.int32)
    inputs = (ids, full, np.zeros_like(ids))
    found = {}
    rows = 1
    while rows <= batch:
        calls.TOKENS = rows * LENGTH  # one call of `rows` rows
        compiled = compile_model(
            model, batch_sizes=[rows], lengths=[LENGTH], dtype=dtype, implementation=implementation
        )
        only = compiled._executables[rows, LENGTH]

        def call(*part, only=only):
            return np.asarray(only.call(only.params, *part))

        def in_turn(call=call, rows=rows):
            return [call(*(array[i : i + rows] for array in inputs)) for i in range(0, batch, rows)]

        found[f"{rows} rows in turn"] = in_turn
        if rows < batch:
            found[f"{rows} rows side by side"] = lambda call=call, rows=rows: calls.begin_calls(call, inputs, rows)()
        rows *= 2
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = describe() | {"batch": args.batch, "length": LENGTH, "dtype": args.dtype, "rounds": args.rounds}
    for name, (model, implementation) in models().items():
        found = ways(model, implementation, args.batch, args.dtype)
        timings = measure_interleaved(found, rounds=args.rounds)
        result[name] = {
            way: {"p50_ms": round(timing.p50 * 1e3, 1), "busy": round(busy(found[way], 4), 2)}
            for way, timing in timings.items()
        }
        for way, row in result[name].items():
            print(f"{name:26} {way:24} {row}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
