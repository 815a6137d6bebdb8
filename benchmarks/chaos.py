"""SIGKILL at random moments of a run, each followed by `mlprune resume`: are the weights those of a run left alone?

    python benchmarks/chaos.py [--kills 30] [--json FILE]

A tiny model on the demo task goes through dense, heads and rows, and blocks, with recovery, in its own processes. A
process is killed at a moment drawn evenly from the time that a whole run takes, again and again until enough were;
then the run is finished. Every array of the run is compared: models, masks, scores, thresholds and uncut weights.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from describe import describe
from orbax.checkpoint import v1 as ocp

SETTINGS = [
    "dense.epochs=1",
    "prune.heads_rows.epochs=2",
    "prune.blocks.epochs=2",
    "checkpoint_steps=10",
    "log_every=10",
]
MLPRUNE = [sys.executable, "-c", "from mlprune_jax.cli import main; main()"]
MOST_KILLS_OF_A_RUN = 5


def start(*arguments):
    return subprocess.Popen(
        [*MLPRUNE, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def begin(folder):
    return ["demo", "-o", str(folder), "--quiet", *(part for text in SETTINGS for part in ("--set", text))]


def digest(folder):
    """Of every array that a run leaves."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        found.update(path.read_bytes())
    for path in sorted(folder.glob("stages/*/learned")):
        for leaf in jax.tree.leaves(ocp.load(str(path))):
            found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def kill_until_finished(folder, rng, whole, kills):
    """Kills that one run took, with the stage of each; it ends undisturbed after `MOST_KILLS_OF_A_RUN`."""
    moments = []
    while True:
        arguments = ["resume", str(folder), "--quiet"] if (folder / "run.json").is_file() else begin(folder)
        process, wait = start(*arguments), rng.uniform(0, whole)
        if len(moments) >= min(MOST_KILLS_OF_A_RUN, kills):
            assert process.wait() == 0
            return moments
        try:
            assert process.wait(timeout=wait) == 0  # finished before its moment came
            return moments
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").is_file() else []
        last = json.loads(lines[-1]) if lines and lines[-1].endswith("}") else {"stage": "start", "step": 0}
        moments.append(f"{last['stage']} {last['step']}")
        if not (folder / "run.json").is_file() and folder.exists():
            for path in sorted(folder.rglob("*"), reverse=True):  # killed before it was a run
                path.unlink() if path.is_file() else path.rmdir()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng, runs = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("warm", "undisturbed"):  # the first compiles
            started = time.monotonic()
            assert start(*begin(Path(scratch) / name)).wait() == 0
            whole = time.monotonic() - started
        wanted = digest(Path(scratch) / "undisturbed")
        print(f"a run takes {whole:.1f} s", flush=True)
        left = args.kills
        while left > 0:
            folder = Path(scratch) / f"run{len(runs)}"
            moments = kill_until_finished(folder, rng, whole, left)
            same = digest(folder) == wanted
            runs.append({"killed_at": moments, "identical": same})
            left -= len(moments)
            print(runs[-1], flush=True)
    killed = sum(len(run["killed_at"]) for run in runs)
    summary = {"kills": killed, "runs": len(runs), "identical_runs": sum(run["identical"] for run in runs)}
    print(summary)
    if args.json:
        args.json.write_text(json.dumps(describe() | summary | {"each": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
