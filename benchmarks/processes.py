"""Two processes of two virtual CPU devices against one device: the losses of the same run, step by step.

    python benchmarks/processes.py [--steps 200] [--json FILE]

The demo's model and data with `fsdp: 2`, dropout on; dense fine-tuning, then heads and rows. Floats are added in
another order, so the last bits differ; in pruning that can at some step change which unit is kept, and from there the
two part.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from describe import describe

PROGRAM = [sys.executable, "-c", "from mlprune_jax.cli import main; main()"]


def settings(steps):
    epochs = steps / 128  # 4096 sentences in batches of 32
    given = {
        "dense.epochs": epochs,
        "prune.blocks.enabled": "false",
        "prune.density": 0.4,
        "prune.heads_rows.epochs": epochs,
        "prune.heads_rows.recover": 0,
        "log_every": 1,
    }
    return [part for place, value in given.items() for part in ("--set", f"{place}={value}")]


def run(folder, steps, processes, devices):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [*PROGRAM, "demo", "-o", str(folder), "--quiet", *settings(steps), "--set", f"fsdp={min(2, devices)}"]
    engine = ["--coordinator", address, "--processes", str(processes), "--process"]
    started = [
        subprocess.Popen([*command, *engine, str(i)] if processes > 1 else command, env=environment)
        for i in range(processes)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit("a process failed")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {stage: [line for line in lines if line["stage"] == stage] for stage in ("dense", "heads_rows")}


def compare(steps):
    root = Path(tempfile.mkdtemp())
    one, four = run(root / "one", steps, 1, 1), run(root / "four", steps, 2, 2)
    shutil.rmtree(root)
    found = {}
    for stage in one:
        apart = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one[stage], four[stage], strict=True)]
        found[stage] = {"steps": len(apart), "largest_relative_difference": max(apart), "relative_differences": apart}
        found[stage]["first_step_beyond_1e-4"] = next((i for i, x in enumerate(apart, 1) if x > 1e-4), None)
        if stage == "heads_rows":
            counts = [(a["density"], b["density"]) for a, b in zip(one[stage], four[stage], strict=True)]
            found[stage]["first_step_of_another_density"] = next(
                (i for i, (a, b) in enumerate(counts, 1) if abs(a - b) > 1e-6), None
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = describe() | compare(args.steps)
    print(json.dumps({k: v for k, v in result.items() if not isinstance(v, dict)}, indent=1))
    for stage in ("dense", "heads_rows"):
        print(stage, {k: v for k, v in result[stage].items() if k != "relative_differences"})
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
