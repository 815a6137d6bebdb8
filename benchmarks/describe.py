"""What a stored measurement says about where it comes from."""

import os
import platform
import shlex
import subprocess
import sys
import time
from typing import Any

import jax

from pallas_kernels.device import hardware_name


def describe() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "device": jax.devices()[0].device_kind,
        "hardware": hardware_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
