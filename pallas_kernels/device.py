"""What the device at hand is, and so which implementations it can run."""

from __future__ import annotations

import contextlib
import os
import platform as machine_platform
import re
from functools import cache
from pathlib import Path

import jax


def platform() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: where jax puts arrays by default."""
    return jax.default_backend()


def device_kind() -> str:
    """The default device's name as jax has it, which is "cpu" for every CPU; see `hardware_name`."""
    return jax.devices()[0].device_kind


def compute_capability() -> tuple[int, int] | None:
    """Major and minor of an NVIDIA GPU, ``(9, 0)`` for Hopper; ``None`` on anything else."""
    told = getattr(jax.devices()[0], "compute_capability", None)
    if platform() != "gpu" or told is None or not str(told).replace(".", "").isdecimal():
        return None
    major, _, minor = str(told).partition(".")
    return int(major), int(minor or 0)


def hardware_name() -> str:
    """What measured times belong to: a GPU's name, or a CPU's with its generation, widest vectors and number of cores.

    To jax every CPU is of kind "cpu", and a time measured on one says little of another: under one name of its maker,
    one generation took half the time of the one before.
    """
    if platform() != "cpu":
        return device_kind()
    model, flags = _cpu_model_and_flags()
    vectors = next((name for name in ("avx512_bf16", "avx512f", "avx2", "asimd") if name in flags), "no wide vectors")
    return f"{model}, {vectors}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use: a scheduler often leaves it fewer than the machine has.

    As XLA counts its threads: by ``NPROC`` where it is set, for nothing else tells of a container's limit.
    """
    with contextlib.suppress(KeyError, ValueError):
        return max(1, int(os.environ["NPROC"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def any_generation(hardware: str) -> str:
    """A `hardware_name` without its generation, as names were before that was told."""
    return re.sub(r" \(family \d+, model \d+\)", "", hardware)


@cache
def _cpu_model_and_flags() -> tuple[str, frozenset[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return machine_platform.processor() or machine_platform.machine(), frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", ""))
    model = facts.get("model name", machine_platform.machine())
    if {"cpu family", "model"} <= facts.keys():  # x86
        model += f" (family {facts['cpu family']}, model {facts['model']})"
    return model, frozenset(flags.split())
