"""Several processes as one program: how they find each other, and what the first of them does for all."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlprune_jax.errors import ConfigError, MLPruneError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

PATIENCE = 300
"""Seconds until processes that have not found each other give up."""
HEARTBEAT = 100
"""Seconds after which a process that says nothing counts as dead; jax then ends the others."""
UNMET = "see that all of them run, and that process 0's host and port can be reached from each"
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Where srun and mpirun say how many tasks they started."""


def join(coordinator: str | None, processes: int | None, process: int | None, *, patience: int = PATIENCE) -> None:
    """Make this process one of several, before jax computes anything.

    Args:
        coordinator: ``host:port`` of process 0, the same for all.
        processes: how many there are.
        process: which of them this is, from 0. All three unset: what SLURM, Open MPI or Kubernetes say, and nothing
            where none of them started several tasks.
        patience: seconds to wait for the others.

    Raises:
        ConfigError: only some of the three are given, or the processes did not find each other in time.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ConfigError("--coordinator, --processes and --process belong together", hint="give all three, or none")
    if not any(given) and not started_by_launcher():
        return
    if coordinator is not None and process:
        _wait_for(coordinator, patience)
    # Where the others do not come in time, jax aborts the process itself: this line stands above what it prints then.
    _log.info("waits up to %d s for the other processes", patience)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        told = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the processes did not find each other: {type(error).__name__}: {told}", hint=UNMET
        ) from error


def _wait_for(coordinator: str, patience: int) -> None:
    """Wait until process 0 listens; jax would end this process without an exception where it does not."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator takes HOST:PORT, got {coordinator!r}")
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise ConfigError(
                    f"process 0 did not answer at {coordinator} within {patience} s: {error}", hint=UNMET
                ) from error
        time.sleep(0.2)


def started_by_launcher() -> bool:
    """Whether srun or mpirun started this process as one of several, or Kubernetes as a pod of an indexed job.

    In a pod jax asks Kubernetes for the others, for which it needs the ``kubernetes`` package.
    """
    pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    several = any(os.environ.get(name, "1") not in ("", "1") for name in TASKS)
    return several or (pod and find_spec("kubernetes") is not None)


def several() -> bool:
    """Whether this process is one of several; starts no backend where it is not.

    A sweep's process, which only hands out runs, so leaves the accelerators to them.
    """
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes and reports: process 0, or the only one."""
    return jax.process_index() == 0


def first_alone(work: Callable[[], Result]) -> Result | None:
    """Do ``work`` on the first process while the others wait; they get ``None``.

    Raises:
        MLPruneError: on the others, where ``work`` failed; the first raises what ``work`` raised.
    """
    if not several():
        return work()
    result, failure = None, None
    if is_first():
        try:
            result = work()
        except Exception as error:
            failure = error
    failed = agree(int(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise MLPruneError("process 0 could not go on", hint="its own message says why")
    return result


def agree(value: int) -> int:
    """The first process's value, on all of them."""
    if not several():
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
