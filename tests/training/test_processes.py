"""Processes that look for each other, and what the first does for all where there is but one."""

import socket
import subprocess
import sys

import pytest

from mlprune_jax.errors import ConfigError
from mlprune_jax.training.processes import agree, first_alone, is_first, join, started_by_launcher


def test_alone_the_first_is_all():
    assert is_first()
    assert agree(7) == 7
    assert first_alone(lambda: "done") == "done"
    with pytest.raises(ZeroDivisionError):
        first_alone(lambda: 1 // 0)


def test_nothing_happens_where_no_launcher_started_several(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setattr("jax.distributed.initialize", None)
    join(None, None, None)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_several_tasks_of_a_launcher_are_found(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert started_by_launcher()


@pytest.mark.parametrize("package", [None, "kubernetes"])
def test_a_pod_of_an_indexed_job_is_found_where_jax_could_ask_for_the_others(monkeypatch, package):
    for name in ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr("mlprune_jax.training.processes.find_spec", lambda _: package)
    assert started_by_launcher() == (package is not None)


def test_handing_out_runs_leaves_the_accelerators_alone(tmp_path):
    """Found by review: a sweep's lock and its signals asked jax how many processes there are."""
    code = f"""
from pathlib import Path
from jax._src.xla_bridge import backends_are_initialized
from mlprune_jax.pipeline.folder import RunFolder
from mlprune_jax.training.interrupt import StopRequest
with RunFolder(Path({str(tmp_path)!r})).locked(), StopRequest() as stopping:
    assert not stopping()
    assert not backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_all_three_or_none():
    with pytest.raises(ConfigError, match="belong together"):
        join("host:1", 2, None)


def test_a_coordinator_that_never_answers_is_told_in_time():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ConfigError, match=r"did not answer at 127\.0\.0\.1:\d+ within 1 s"):
        join(free, 2, 1, patience=1)


@pytest.mark.parametrize("address", ["host", ":1", "host:x"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        join(address, 2, 1, patience=1)
