"""Every test runs on the CPU, offline, with strict dtypes and with shapes checked; stricter than production."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]

# Read once, when jax and the Hugging Face libraries are imported: so set before any test module is.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # the tests compile much and compute little
# Older emitters compile in half the time. A later jaxlib has none, and XLA stops at flags that it does not know.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
# In one thread of XLA's, Pallas' GPU interpreter can wait for itself for ever: seen on one core beside another worker.
if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1:
    os.environ["NPROC"] = "2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

install_import_hook(["mlprune_jax", "pallas_kernels"], "beartype.beartype")

# Reproducible examples; the first call of a jitted function may compile for seconds.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints, data and reference arrays beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: the checks on real checkpoints and reference arrays need it")
    return folder
