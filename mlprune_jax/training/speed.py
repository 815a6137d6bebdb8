"""How fast a training goes: steps, tokens and model FLOP per second, utilisation of the devices, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.pruning.granularity import matrix_shapes

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
"""Dense bfloat16 FLOP per second by the vendors' data sheets, by a part of the device's kind; the first that fits."""

RATES = (
    "seconds",
    "compile_seconds",
    "steps_per_second",
    "tokens_per_second",
    "model_flops_per_second",
    "model_flop_utilisation",
)
"""What `Meter.values` may hold."""

Work = Callable[[int, int], float]


def forward_flops(config: ModelConfig, rows: int, length: int, *, first_only: bool = False) -> float:
    """FLOP of the encoder's matrix products for ``rows`` sequences of ``length`` tokens; masked weights count fully.

    With ``first_only`` the last layer answers for one token of each sequence (`mlprune_jax.models.bert.Bert`).
    """
    asking = [length] * (config.num_hidden_layers - 1) + [1 if first_only else length]
    layers = zip(config.layer_shapes, asking, strict=True)
    return float(rows * sum(_layer_flops(config, shape, length, asks) for shape, asks in layers))


def _layer_flops(config: ModelConfig, shape: LayerShape, length: int, asking: int) -> int:
    sizes = {name: d_in * d_out for name, (d_in, d_out) in matrix_shapes(config, shape).items()}
    of_all = sizes["attention/key"] + sizes["attention/value"]
    features = sizes["attention/query"] // config.hidden_size  # all heads'
    return 2 * (length * of_all + asking * (sum(sizes.values()) - of_all)) + 4 * asking * length * features


def step_work(student: ModelConfig, teacher: ModelConfig | None, *, first_only: bool = False) -> Work:
    """Model FLOP of a step by (rows, length): forward and twice that backward, and the teacher's forward.

    What is computed twice by rematerialisation does not count, as usual for model FLOP utilisation; nor does what
    ``first_only`` leaves out.
    """

    def work(rows: int, length: int) -> float:
        taught = 0.0 if teacher is None else forward_flops(teacher, rows, length, first_only=first_only)
        return 3.0 * forward_flops(student, rows, length, first_only=first_only) + taught

    return work


class Meter:
    """Counts what a loop does; calls that compile, evaluations and a teacher's answers ahead are left out of the rates.

    Saves are not.

    Args:
        work: model FLOP of a step by (rows, length); 0 where unset.
        dtype: of the products; utilisation is known for bfloat16 alone.
    """

    def __init__(self, work: Work | None = None, dtype: str = "float32"):
        self._work, self._dtype = work, dtype
        self._started = time.perf_counter()
        self._compiling, self._elsewhere, self._steps, self._tokens, self._flops = 0.0, 0.0, 0, 0, 0.0
        self._seen: set[tuple[int, ...]] = set()

    def count(self, shape: tuple[int, ...], seconds: float) -> None:
        """A step over token ids of ``shape``, whose call took ``seconds``: long only where it compiled."""
        if shape not in self._seen:
            self._seen.add(shape)
            self._compiling += seconds
            return
        rows, length = shape
        self._steps += 1
        self._tokens += rows * length
        self._flops += self._work(rows, length) if self._work else 0.0

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """For what is no step: a teacher's answers ahead, or an evaluation once the steps before it are done."""
        began = time.perf_counter()
        yield
        self._elsewhere += time.perf_counter() - began

    def values(self) -> dict[str, float]:
        """``seconds`` in all, ``compile_seconds``, and rates over the rest, for all devices together.

        ``model_flop_utilisation`` is there where the devices' peak is known.
        """
        seconds = time.perf_counter() - self._started
        busy = max(seconds - self._compiling - self._elsewhere, 1e-9)
        rates = {"steps": float(self._steps), "tokens": float(self._tokens), "model_flops": self._flops}
        values = {f"{name}_per_second": count / busy for name, count in rates.items() if count}
        peak = _peak_flops(self._dtype)
        if peak is not None and self._flops:
            values["model_flop_utilisation"] = self._flops / busy / peak
        return values | {"seconds": seconds, "compile_seconds": self._compiling}


def peak_memory() -> int:
    """Most bytes in use at once since the process began: of the first local device, or on a CPU of the process."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _peak_flops(dtype: str) -> float | None:
    kind = jax.devices()[0].device_kind
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in kind), None)
    return peak * jax.device_count() if peak is not None and dtype == "bfloat16" else None
