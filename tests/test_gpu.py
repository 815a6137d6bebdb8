"""Kernels and compiled models on a real Hopper GPU, in processes of their own: the suite itself runs on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

TELL = "import jax; d = jax.devices()[0]; print(d.platform, getattr(d, 'compute_capability', 'none'))"


@pytest.fixture(scope="module")
def environment():
    """Of a process that sees the GPU."""
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no NVIDIA GPU on this machine")
    variables = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    told = subprocess.run([sys.executable, "-c", TELL], env=variables, capture_output=True, text=True, timeout=120)
    if told.stdout.split() != ["gpu", "9.0"]:
        found = told.stdout.strip() or told.stderr.strip()[-200:]
        pytest.skip(f"jax finds no GPU of compute capability 9.0 (is its CUDA plugin installed?): {found}")
    return variables


@pytest.mark.timeout(600)
def test_mosaic_designs_match_reference(environment, tmp_path):
    """All block shapes and kinds of masks, bias, GELU and residual: the bench's own first step."""
    out = tmp_path / "bench.json"
    bench = ["-m", "pallas_kernels.block_sparse_matmul.bench", "--steps", "correctness"]
    only = ["--implementations", "mosaic_gpu", "--out", str(out)]
    done = subprocess.run([sys.executable, *bench, *only], env=environment, capture_output=True, text=True, timeout=590)
    cells = json.loads(out.read_text())["cells"]
    wrong = {key: cell for key, cell in cells.items() if not cell.get("ok", "refused" in cell)}
    assert not wrong, done.stdout[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
    refused = {key for key, cell in cells.items() if "refused" in cell}
    # Only what a design says that it cannot take: narrow blocks, and a panel that does not fit.
    assert all("x_shared" in key or "x_stationary/64x64/FC2" in key for key in refused), refused


@pytest.mark.timeout(600)
@pytest.mark.parametrize("implementation", ["dense", "xla", "mosaic_gpu", "triton"])
def test_a_packed_model_answers_as_it_was_trained(environment, implementation):
    """In bfloat16 with cuDNN's attention; each of some twenty products rounds its operands once."""
    command = [sys.executable, "-m", "tests.inference.gpu_answers", implementation]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590)
    if "needs jax-triton" in done.stderr:
        pytest.skip("jax-triton is not there, or does not fit")
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 20 * 2**-8
