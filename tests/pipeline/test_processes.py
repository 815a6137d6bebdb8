"""A run of two processes with two devices each: that of one device, up to rounding; stopped, and gone on with."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from mlprune_jax import pipeline
from mlprune_jax.config.loading import dump_config
from mlprune_jax.pipeline.verification import verify_folder

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

DENSE_ONLY = {"heads_rows": {"enabled": False}, "blocks": {"enabled": False}}
PROGRAM = "from mlprune_jax.cli import main; main()"
IMPATIENT = f"from mlprune_jax.training import processes; processes.HEARTBEAT = 30; {PROGRAM}"


def start_two(*command, program=PROGRAM):
    """The command in two processes of two virtual devices, that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    engine = ("--coordinator", address, "--processes", "2", "--process")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *command, *engine, str(i)], **streams, text=True, env=environment
        )
        for i in range(2)
    ]


def ended(processes):
    outputs = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], outputs


def losses(folder, stage):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]


@pytest.mark.slow
def test_two_processes_are_one_program(tiny, tmp_path):
    stage = {**tiny.settings["dense"], "recover": 0.0}
    prune = {"density": 0.5, "heads_rows": stage, "blocks": {"enabled": False}}
    config = tiny.config(prune=prune, log_every=1, checkpoint_steps=3, fsdp=2, evaluate_steps=8)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    processes = start_two("prune", "--config", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "two"), "--json")
    for line in processes[0].stderr:
        if "heads_rows 2/" in line:
            break
    processes[1].send_signal(signal.SIGTERM)  # one is told; both stop, after the same step
    codes, outputs = ended(processes)
    assert codes == [75, 75], outputs
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2

    alone = pipeline.run(config.model_copy(update={"fsdp": 1}), tmp_path / "one", quiet=True)
    np.testing.assert_allclose(losses(tmp_path / "two", "dense"), losses(tmp_path / "one", "dense"), rtol=1e-4)

    codes, outputs = ended(start_two("resume", str(tmp_path / "two"), "--json"))
    assert codes == [0, 0], outputs
    first, second = (output for output, _ in outputs)  # Gloo's threads print there too, and into each other's lines
    assert "{" not in second, "only the first process reports"
    summary = json.loads(first[first.index("{") : first.rindex("}") + 1])
    assert summary["final"]["density"] == pytest.approx(alone["final"]["density"], abs=0.02)
    verify_folder(tmp_path / "two")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_one_goes_on_alone(tiny, tmp_path, caplog):
    config = tiny.config(prune=DENSE_ONLY, log_every=1, checkpoint_steps=1, fsdp=2)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    processes = start_two(
        "prune", "--config", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run"), program=IMPATIENT
    )
    for line in processes[0].stderr:
        if "dense 4/" in line:
            break
    processes[1].kill()
    codes, _ = ended(processes)  # jax ends the other: within its heartbeat, or when an exchange fails
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    resolved = tmp_path / "run" / "config.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("fsdp: 2", "fsdp: 1"))
    pipeline.resume(tmp_path / "run", quiet=True)
    assert re.search(r"was saved by 4 x .* in 2 processes; by 1 x .* in 1 process the last bits", caplog.text)
    verify_folder(tmp_path / "run")


def test_a_refusal_reaches_all_processes(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "else.txt").write_text("")
    (tmp_path / "config.yaml").write_text(dump_config(tiny.config()))
    codes, outputs = ended(start_two("prune", "--config", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run")))
    assert codes == [2, 1], outputs
    assert "exists and is not empty" in outputs[0][1]
    assert "process 0 could not go on" in outputs[1][1]
