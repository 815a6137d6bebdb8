"""Compile every design of the Hopper kernels for an H200 on a machine without one, and read the assembler's report.

    python3.11 -m venv /tmp/aot && /tmp/aot/bin/pip install jax==0.10.2 jaxtyping absl-py
    /tmp/aot/bin/pip install --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2
    PYTHONPATH=. /tmp/aot/bin/python benchmarks/aot_compile_h200.py [--json benchmarks/results/aot_h200.json]

BERT-base matrices at 4096 tokens. Spilled registers, or products that the assembler runs one after the other (C7510),
are defects that neither the interpreter nor the lowering shows; the script ends with 1 if it finds one. It says nothing
of speed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPORTS = tempfile.TemporaryDirectory()
# Read when jax and Mosaic are imported. Without a platform the CUDA plugin looks for a driver.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "MOSAIC_GPU_DUMP_TO": REPORTS.name,
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "MOSAIC_GPU_DUMP_PTX": "1",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from pallas_kernels.block_sparse_matmul import mosaic_gpu, workloads  # noqa: E402
from pallas_kernels.block_sparse_matmul.epilogue import Activation  # noqa: E402
from pallas_kernels.errors import KernelError  # noqa: E402

TOKENS = 4096
EPILOGUES: dict[str, tuple[bool, bool, Activation | None]] = {
    "bias, gelu": (True, False, "gelu"),
    "bias, gelu, residual": (True, True, "gelu"),
}

# What the compiler asks of the target (XLA's GpuTargetConfigProto), by the datasheet of the H200.
TARGET = """
gpu_device_info {
  name: "NVIDIA H200 141GB HBM3e" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 151397597184 device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""


def compile_product(device, name, block, design, epilogue):
    """Compile one product; returns the assembler's report of its kernel."""
    sharding = SingleDeviceSharding(device)
    bias, residual, activation = EPILOGUES[epilogue]
    shape = workloads.MATRICES[name]

    def facts(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    w = workloads.make_matrix(shape, block, 0.2, jnp.bfloat16).without_pattern()
    blocks = len(w.values)
    w = jax.tree.map(lambda a: facts(a.shape, a.dtype), w)
    x = facts((TOKENS, shape[0]))
    b = facts((shape[1],)) if bias else None
    r = facts((TOKENS, shape[1])) if residual else None
    for old in Path(REPORTS.name).iterdir():
        old.unlink()
    started = time.monotonic()
    product = jax.jit(lambda x, w, b, r: mosaic_gpu.matmul(x, w, b, r, activation, design=design))
    product.trace(x, w, b, r).lower().compile()
    tiling = mosaic_gpu.plan(design, TOKENS, shape, block, blocks, mosaic_gpu.multiprocessors())
    return {"tiling": str(tiling), "compile_seconds": round(time.monotonic() - started, 1), **read_reports()}


def read_reports():
    """Registers, spills, warnings from the assembler's log, and the products and waits in the code it was given."""
    text = {
        ending: "".join(path.read_text(errors="replace") for path in Path(REPORTS.name).glob(f"*.{ending}"))
        for ending in ("ptxas", "ptx")
    }
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text["ptxas"])
    registers = re.findall(r"Used (\d+) registers", text["ptxas"])
    if len(spills) != 1 or len(registers) != 1:
        raise RuntimeError(f"expected the report of one kernel, got: {text['ptxas'][-500:]!r}")
    return {
        "registers": int(registers[0]),
        "stack_bytes": int(spills[0][0]),
        "spill_store_bytes": int(spills[0][1]),
        "spill_load_bytes": int(spills[0][2]),
        "assembler_codes": sorted(set(re.findall(r"\((C7\d+)\)", text["ptxas"]))),
        "wgmma": text["ptx"].count("wgmma.mma_async"),
        "wgmma_waits": text["ptx"].count("wgmma.wait_group"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/aot_h200.json"))
    options = parser.parse_args()
    device = topologies.get_topology_desc("h200", "cuda", target_config=TARGET, topology="1x1x1").devices[0]
    git = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    found = {"jax": jax.__version__, "target": device.device_kind, "tokens": TOKENS, "commit": commit, "kernels": {}}
    for design in mosaic_gpu.DESIGNS:
        for name in ("QKV", "O", "FC1", "FC2"):
            for block in workloads.SQUARE_BLOCKS + workloads.MIXED_BLOCKS:
                for epilogue in EPILOGUES:
                    key = f"{design}/{name}/{block[0]}x{block[1]}/{epilogue}"
                    try:
                        report = compile_product(device, name, block, design, epilogue)
                    except KernelError:
                        continue  # the design does not take this block or this many features
                    found["kernels"][key] = report
                    print(key, report, flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    bad = [
        key
        for key, report in found["kernels"].items()
        if report["spill_store_bytes"] or report["stack_bytes"] or "C7510" in report["assembler_codes"]
    ]
    print(f"{len(found['kernels'])} kernels compiled, {len(bad)} with spills or serialized products: {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
