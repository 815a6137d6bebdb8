"""The scheduler files in examples/: they parse, and do what docs/schedulers.md says of them."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BATCH = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))
JOBSET = ROOT / "examples" / "kubernetes" / "jobset.yaml"


@pytest.fixture
def programs(tmp_path):
    """srun, scontrol and mlprune that note how they were called; mlprune ends with the code in ``CODE``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    note = f'#!/bin/sh\necho "$(basename "$0") $*" >> {tmp_path}/calls\n'
    rest = {
        "scontrol": "",
        "mlprune": 'exit "$CODE"\n',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\n"$@"\n',
    }
    for name, more in rest.items():
        (folder / name).write_text(note + more)
        (folder / name).chmod(0o755)

    def call(command, code, **environment):
        (tmp_path / "calls").unlink(missing_ok=True)
        path = f"{folder}:{os.environ['PATH']}"
        known = {"PATH": path, "CODE": str(code), "RUN": "run", "CONFIG": "c.yaml", "SLURM_JOB_ID": "42", **environment}
        done = subprocess.run(command, cwd=tmp_path, env=known, timeout=30, check=False)
        assert done.returncode == code
        return (tmp_path / "calls").read_text().splitlines()

    return call


def begin(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.resolved.yaml").touch()


def test_there_are_batch_files():
    assert [path.stem for path in BATCH] == ["one_node", "several_nodes"]


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.stem)
def test_a_batch_file_is_valid_bash_and_is_warned_in_time(path):
    subprocess.run(["bash", "-n", path], check=True, timeout=30)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert {"#SBATCH --signal=TERM@120", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(lines)


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.stem)
@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_batch_job_starts_then_resumes_and_is_queued_again_after_75_alone(programs, tmp_path, path, code):
    srun, started, *after = programs(["bash", path], code)
    assert srun.startswith("srun ")
    assert started == "mlprune prune --config c.yaml -o run"
    assert after == (["scontrol requeue 42"] if code == 75 else [])
    begin(tmp_path)
    assert programs(["bash", path], code)[1] == "mlprune resume run"


def test_the_jobset_parses_and_its_parts_agree():
    spec = yaml.safe_load(JOBSET.read_text(encoding="utf-8"))["spec"]
    (workers,) = spec["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert job["completions"] == job["parallelism"] == int(environment["PROCESSES"])
    assert environment["COORDINATOR"].startswith(f"mlprune-{workers['name']}-0-0.{spec['network']['subdomain']}:")
    exits, disrupted = job["podFailurePolicy"]["rules"]
    assert exits["onExitCodes"]["values"] == [75]
    assert exits["onExitCodes"]["containerName"] == container["name"]
    assert disrupted["action"] == "FailJob"
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["targetReplicatedJobs"] == [workers["name"]]
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_a_pod_starts_and_then_resumes(programs, tmp_path):
    (workers,) = yaml.safe_load(JOBSET.read_text(encoding="utf-8"))["spec"]["replicatedJobs"]
    (container,) = workers["template"]["spec"]["template"]["spec"]["containers"]
    command = [*container["command"], *container["args"]]
    place = {"COORDINATOR": "first:1", "PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
    options = "--coordinator first:1 --processes 4 --process 3"
    assert programs(command, 75, **place) == [f"mlprune prune --config c.yaml -o run {options}"]
    begin(tmp_path)
    assert programs(command, 75, **place) == [f"mlprune resume run {options}"]
