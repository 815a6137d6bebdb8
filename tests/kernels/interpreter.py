"""Pallas' interpreter of GPU kernels: the one place that imports it, as it is no public interface and may move."""

import jax
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams


def run(product):
    """``product(interpret)`` in the interpreter, and whether two of its threads raced.

    It keeps the memory of a kernel that failed, and the next one would find it.

    What it does not see: a missing wait for a product or for a store (such waits do nothing in it), and a missing wait
    for a copy where one that was begun later is waited for.
    """
    try:
        result = jax.block_until_ready(product(InterpretGPUParams(detect_races=True)))
        return result, interpret_pallas_call.get_races().races_found
    except BaseException:
        gpu_callbacks.reset_gpu_interpret_mode_state()
        raise
