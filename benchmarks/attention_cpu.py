"""Attention on a CPU: all examples at once, and one after the other.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/attention_cpu.py [--json FILE] [--rounds 5]

Attention alone, and whole forwards of MiniLM-L6's geometry with random weights, float32. Both ways are timed in turn,
round by round; ratios are of the least times. Run it with and without the variable: what it gains depends on it.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from describe import describe

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.models import attention
from mlprune_jax.models.tasks import TaskModel, init_params, predict_logits

ATTENTIONS = [
    (16, 256, 12, 32),
    (16, 272, 12, 32),
    (16, 384, 12, 32),
    (8, 384, 12, 64),
    (8, 512, 12, 64),
    (4, 384, 12, 32),
]
"""Examples, tokens, heads, features of a head."""
FORWARDS = [(64, 256), (64, 384)]
"""Examples and tokens: `mlprune eval` takes 64 at once."""
CONFIG = ModelConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def both_ways(make, rounds):
    """Least seconds of what ``make`` gives, traced anew for each way."""
    runs = {}
    for way, large in (("at once", False), ("one by one", True)):
        attention._too_large = lambda *_, large=large, **__: large
        runs[way] = make()
        jax.block_until_ready(runs[way]())
    seconds = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds[way].append(time.perf_counter() - started)
    least = {way: min(values) for way, values in seconds.items()}
    return {way: round(value, 5) for way, value in least.items()} | {
        "times as fast": round(least["at once"] / least["one by one"], 2)
    }


def make_attention(batch, tokens, heads, features):
    keys = jax.random.split(jax.random.key(0), 3)
    states = [jax.random.normal(key, (batch, heads, tokens, features)) for key in keys]
    real = jnp.ones((batch, tokens), bool)

    def make():
        run = jax.jit(lambda *arrays: attention.attend(*arrays))
        return lambda: run(*states, real)

    return make


def make_forward(params, batch, tokens):
    ids = jnp.ones((batch, tokens), jnp.int32)

    def make():
        model = TaskModel(CONFIG, "span", 2)
        batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
        run = jax.jit(lambda params: predict_logits(model, params, batch))
        return lambda: run(params)

    return make


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    params = init_params(TaskModel(CONFIG, "span", 2), 0)
    cases = {f"attention {shape}": make_attention(*shape) for shape in ATTENTIONS}
    cases |= {f"forward {shape}": make_forward(params, *shape) for shape in FORWARDS}
    result = describe() | {"cases": {}}
    for name, make in cases.items():
        result["cases"][name] = both_ways(make, args.rounds)
        print(name, result["cases"][name], flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
