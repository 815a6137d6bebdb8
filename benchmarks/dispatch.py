"""Is what the dispatcher picks ever slower than dense? Products that the cost table was not made from, measured afresh.

    python benchmarks/dispatch.py [--dtypes float32 bfloat16] [--cells 60] [--json FILE]

Matrices of BERT-base, whole and shrunk to odd sizes, with random masks of random density, and numbers of tokens between
those that were measured. A cell in which dense is picked is 1 by definition and only counted.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from describe import describe

from pallas_kernels.block_sparse_matmul.api import choose_for
from pallas_kernels.block_sparse_matmul.calibrate import as_served
from pallas_kernels.block_sparse_matmul.workloads import make_matrix
from pallas_kernels.timing import measure_interleaved, ratio

SIDES = (384, 512, 640, 768, 1152, 1536, 2304, 3072)


def draw(rng):
    d_in, d_out = (int(rng.choice(SIDES)) for _ in range(2))
    side = int(rng.choice((16, 32, 64)))
    return (d_in, d_out), (side, side), float(rng.uniform(0.05, 0.9)), int(2 ** rng.uniform(6, 12))


def measure(shape, block, density, tokens, dtype, rounds):
    w = make_matrix(shape, block, density, dtype=jnp.dtype(dtype))
    choice = choose_for(w, tokens)
    cell = {"shape": shape, "block": block, "density": round(density, 3), "tokens": tokens, "dtype": dtype}
    cell |= {"picked": choice.implementation, "reason": choice.reason}
    if choice.implementation == "dense":
        return cell | {"dense_over_picked": 1.0}
    x = jax.random.normal(jax.random.key(0), (tokens, shape[0]), w.dtype)
    timings = measure_interleaved(
        {"dense": call("dense", x, w), "picked": call(choice.implementation, x, w)}, rounds=rounds
    )
    return cell | {"dense_over_picked": round(ratio(timings["dense"], timings["picked"]), 3)}


def call(implementation, x, w):
    product, held = as_served(implementation)
    return partial(jax.jit(product), x, held(w))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seed", type=int, default=7, help="of the products that are drawn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng, cells = np.random.default_rng(args.seed), []
    for i in range(args.cells):
        cells.append(measure(*draw(rng), args.dtypes[i % len(args.dtypes)], args.rounds))
        print(cells[-1], flush=True)
    ratios = sorted(cell["dense_over_picked"] for cell in cells if cell["picked"] != "dense")
    summary = {
        "cells": len(cells),
        "sparse_picked": len(ratios),
        "least": ratios[:3],
        "median": float(np.median(ratios)) if ratios else None,
        "below_0.97": sum(value < 0.97 for value in ratios),
    }
    print(summary)
    if args.json:
        args.json.write_text(json.dumps(describe() | summary | {"measured": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
