"""What is imported when: the command line answers before jax could be loaded."""

import resource
import subprocess
import sys
from importlib.resources import files

import pytest

HELP_SECONDS = 0.5
HEAVY = ("jax", "flax", "optax", "orbax", "transformers", "datasets", "grain", "jax_triton", "sklearn", "torch")


def python(code: str, *args: str) -> str:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after running the code."""
    return {name.partition(".")[0] for name in python(f"import sys\n{code}\nprint(*sys.modules)").split()}


def help_seconds() -> float:
    """Processor time of one ``mlprune --help``: what the wall clock shows where no other program runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "prune" in python("from mlprune_jax.cli import main; main()", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_answers_at_once():
    assert min(help_seconds() for _ in range(3)) < HELP_SECONDS


def test_the_package_runs_as_the_command_line():
    command = [sys.executable, "-m", "mlprune_jax", "config", "list"]
    assert "demo" in subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()


def test_command_line_imports_no_heavy_library():
    code = "from mlprune_jax.cli import app; from typer.testing import CliRunner; CliRunner().invoke(app, ['--help'])"
    assert loaded_after(code).isdisjoint(HEAVY)


def test_config_commands_import_no_heavy_library():
    code = (
        "from mlprune_jax.cli import app; from typer.testing import CliRunner\n"
        "shown = CliRunner().invoke(app, ['config', 'show']); assert shown.exit_code == 0, shown.output"
    )
    assert loaded_after(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("package", ["mlprune_jax", "mlprune_jax.config.loading", "mlprune_jax.config.settings"])
def test_importing_the_library_loads_no_heavy_library(package):
    assert loaded_after(f"import {package}").isdisjoint(HEAVY)


@pytest.mark.parametrize("package", ["mlprune_jax", "pallas_kernels"])
def test_type_checkers_may_read_the_package(package):
    assert (files(package) / "py.typed").is_file()


def test_importing_the_kernels_needs_no_gpu_library():
    assert loaded_after("import pallas_kernels").isdisjoint({"jax_triton", "triton", "transformers", "datasets"})
