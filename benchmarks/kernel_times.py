"""Where a call's time goes on a GPU: the host, the kernels, and which of them; BERT-base whole and pruned.

    python benchmarks/kernel_times.py [--batch 32] [--length 128] [--only MODEL ...] [--seconds 200] [--json FILE]

Models and names are those of `whole_model.py`, in bfloat16. Each is compiled with bfloat16 between its kernels, as it
is served, and, where there is time, with float32. Milliseconds of a call: ``whole``, numpy arrays in and out;
``device``, arrays on the device; ``queued``, a call's share of `QUEUE` that the host does not wait for in between.
``busy`` is the sum over the kernels and memsets of a profile, ``number`` how many they are and ``kernels`` the longest
of them, in microseconds of one call. ``XLA_FLAGS`` are stored: ``--xla_gpu_enable_command_buffer=`` leaves CUDA graphs
out.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from describe import describe
from whole_model import HEAD_ROW, IN_TILES, models

from mlprune_jax.inference import runtime
from pallas_kernels.timing import measure_interleaved

DTYPE = "bfloat16"
QUEUE = 16
TRACED = 4
LONGEST = 12


def compiled(model, batch, length, activations):
    """The one bucket of a served model, with ``activations`` between its kernels."""
    runtime._activations = lambda dtype: activations
    served = runtime.compile_model(model, batch_sizes=[batch], lengths=[length], dtype=DTYPE)
    return served._executables[batch, length]


def kernels(call):
    """Microseconds of each kernel of one call, by name, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    spent, count = Counter(), 0
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    spent[event.name] += event.duration_ns / 1e3 / TRACED
                    count += 1
    return spent, count / TRACED


def measure(executable, batch, length):
    rng = np.random.default_rng(0)
    host = (rng.integers(0, 30522, (batch, length), np.int32), np.full(batch, length, np.int32))
    host = (*host, np.zeros((batch, length), np.int32))
    device = jax.device_put(host)
    calls = {
        "whole": lambda: np.asarray(executable.call(executable.params, *host)),
        "device": lambda: executable.call(executable.params, *device),
        "queued": lambda: [executable.call(executable.params, *device) for _ in range(QUEUE)],
    }
    timings = measure_interleaved(calls, rounds=15)
    found = {name: round(timing.p50 * 1e3, 3) for name, timing in timings.items()}
    found["queued"] = round(found["queued"] / QUEUE, 3)
    spent, count = kernels(calls["device"])
    longest = {name: round(us, 1) for name, us in spent.most_common(LONGEST)}
    return found | {"busy": round(sum(spent.values()) / 1e3, 3), "number": count, "kernels": longest}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=["dense", HEAD_ROW, f"{HEAD_ROW}{IN_TILES}64"], metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=200, help="after which nothing more is begun")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    if jax.default_backend() == "cpu":
        parser.error("this measures GPUs; a CPU's calls are measured by calls.py")
    result = describe() | {"dtype": DTYPE, "batch": args.batch, "length": args.length, "rows": {}}
    found = {name: model for name, (model, _) in models(args.only).items()}
    for activations in (DTYPE, "float32"):
        for name, model in found.items():
            if time.perf_counter() - began > args.seconds:
                return
            row = measure(compiled(model, args.batch, args.length, activations), args.batch, args.length)
            result["rows"][f"{name}, {activations}"] = row
            print(f"{time.perf_counter() - began:5.0f} s", name, activations, row, flush=True)
            if args.json:
                args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
