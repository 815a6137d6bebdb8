"""Pallas' interpreter of GPU kernels: the one place that imports it, as it is no public interface and may move."""

import jax
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

# Copies are taken in turn by so many threads of the memory engine: with one, a copy that was waited for would stand for
# all before it, and a missing wait for one of those would go unseen.
COPY_THREADS = 61


def run(product):
    """``product(interpret)`` in the interpreter, and whether two of its threads raced.

    It compiles every thread of every thread block anew and runs each once, so optimizing would only cost time. It keeps
    the memory of a kernel that failed, and the next one would find it.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        result = jax.block_until_ready(
            product(InterpretGPUParams(detect_races=True, num_tma_threads_per_device=COPY_THREADS))
        )
        return result, interpret_pallas_call.get_races().races_found
    except BaseException:
        gpu_callbacks.reset_gpu_interpret_mode_state()
        raise
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
