"""What the device at hand is, and so which implementations it can run."""

from __future__ import annotations

import jax


def platform() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: where jax puts arrays by default."""
    return jax.default_backend()


def device_kind() -> str:
    """The default device's name, as cost tables are keyed by it."""
    return jax.devices()[0].device_kind


def compute_capability() -> tuple[int, int] | None:
    """Major and minor of an NVIDIA GPU, ``(9, 0)`` for Hopper; ``None`` on anything else."""
    told = getattr(jax.devices()[0], "compute_capability", None)
    if platform() != "gpu" or told is None or not str(told).replace(".", "").isdecimal():
        return None
    major, _, minor = str(told).partition(".")
    return int(major), int(minor or 0)
