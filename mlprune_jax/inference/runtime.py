"""Finished models compiled for serving: every bucket of batch and length ahead of time, nothing compiled later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.inference.assemble import assemble
from mlprune_jax.inference.calls import begin_calls, plan_calls, side_by_side
from mlprune_jax.inference.forward import Form, ModelParams, forward
from mlprune_jax.inference.plan import Decision, layer_plans, prepare, realise
from mlprune_jax.models.bert import DTYPES
from mlprune_jax.models.names import Kind
from pallas_kernels import Implementation, KernelError
from pallas_kernels.block_sparse_matmul.costs import AnyTable
from pallas_kernels.block_sparse_matmul.implementations import AMPERE
from pallas_kernels.device import compute_capability, platform

Bucket = tuple[int, int]


class Served(NamedTuple):
    """A model as `compile_model` takes it.

    Attributes:
        config: geometry.
        params: parameters, zero wherever a tile is masked.
        masks: tile masks, or ``None``.
        kind: of the head.
    """

    config: ModelConfig
    params: dict[str, Any]
    masks: dict[str, Any] | None
    kind: Kind


class _Executable(NamedTuple):
    """One bucket: what was compiled for it, the rows of one call, the parameters it takes, and its decisions."""

    call: Any
    rows: int
    params: ModelParams
    decisions: tuple[Decision, ...]


class CompiledModel:
    """A model that answers batches of token ids, in whatever bucket they fit; safe to call from several threads.

    Parameters are arguments of the executables and never donated: a call leaves them as they are, and all buckets
    share them, dense or packed as each runs them. Nothing is traced or compiled after construction.
    """

    def __init__(self, executables: dict[Bucket, _Executable], kind: Kind):
        self._executables = executables
        self.kind = kind

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """``(batch, length)`` of every executable, ascending."""
        return tuple(sorted(self._executables))

    def decisions(self, batch: int, length: int) -> tuple[Decision, ...]:
        """Which matrix runs how, and why, in the bucket that takes ``batch`` rows of ``length`` tokens."""
        return self._executables[self._bucket(batch, length)].decisions

    def memory(self, batch: int, length: int) -> dict[str, int]:
        """Bytes of parameters, and of all else that one batch holds at once at most, by XLA's own accounting."""
        batch, length = self._bucket(batch, length)
        executable = self._executables[batch, length]
        told = executable.call.memory_analysis()
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(executable.params))
        at_once = side_by_side(-(-batch // executable.rows))
        of_call = told.temp_size_in_bytes + told.output_size_in_bytes
        return {"parameters": parameters, "activations": at_once * of_call}

    def logits(self, input_ids: Any, lengths: Any, token_type_ids: Any = None) -> Float32[np.ndarray, "..."]:
        """Logits of a batch; rows and tokens that fill up a bucket are cut off again.

        Args:
            input_ids: int ``[batch, length]``, padded on the right; any sizes up to the largest bucket's.
            lengths: real tokens of each row, ``[batch]``, at least 1.
            token_type_ids: segment ids; zeros where ``None``.

        Returns:
            ``[batch, num_labels]``, or ``[batch, length, 2]`` for spans.

        Raises:
            DataError: shapes that do not fit each other, numbers that are no integers or out of range, or no bucket
                large enough.
        """
        return self.begin(input_ids, lengths, token_type_ids)()

    def begin(
        self, input_ids: Any, lengths: Any, token_type_ids: Any = None
    ) -> Callable[[], Float32[np.ndarray, "..."]]:
        """Begin what `logits` computes and return before the device is done; what is returned waits for the logits.

        Arguments and errors are those of `logits`.
        """
        ids, lengths = _integers("input_ids", input_ids), _integers("lengths", lengths)
        types = np.zeros_like(ids) if token_type_ids is None else _integers("token_type_ids", token_type_ids)
        if ids.ndim != 2 or types.shape != ids.shape or lengths.shape != ids.shape[:1]:
            raise DataError(
                f"a batch needs input_ids [batch, length], lengths [batch] and token types like input_ids; got shapes "
                f"{ids.shape}, {lengths.shape}, {types.shape}"
            )
        if lengths.size and (lengths.min() < 1 or lengths.max() > ids.shape[1]):
            raise DataError(f"lengths must lie in 1 .. {ids.shape[1]}, got {lengths.min()} .. {lengths.max()}")
        rows, tokens = ids.shape
        batch, length = self._bucket(rows, tokens)
        executable = self._executables[batch, length]
        # Out of range, a lookup inside the compiled forward would answer for some other token.
        _check_range("input_ids", ids, len(executable.params.word))
        _check_range("token_type_ids", types, len(executable.params.token_type))
        calls = max(-(-rows // executable.rows), 1)
        padding = ((0, calls * executable.rows - rows), (0, length - tokens))
        # A filled-up row has one token: attention over none would divide by zero.
        full = np.pad(lengths, padding[0], constant_values=1)
        inputs = tuple(array.astype(np.int32) for array in (np.pad(ids, padding), full, np.pad(types, padding)))
        finish = begin_calls(partial(executable.call, executable.params), inputs, executable.rows)
        real = (slice(rows), slice(tokens)) if self.kind == "span" else slice(rows)
        return lambda: finish()[real]

    def _bucket(self, batch: int, length: int) -> Bucket:
        """The bucket with the fewest tokens that takes the batch."""
        fitting = [bucket for bucket in self._executables if bucket[0] >= batch and bucket[1] >= length]
        if not fitting:
            raise DataError(
                f"no bucket takes {batch} rows of {length} tokens; there are "
                f"{', '.join(f'{rows}x{tokens}' for rows, tokens in self.buckets)}",
                hint="compile with larger batch_sizes or lengths, or split the batch",
            )
        return min(fitting, key=lambda bucket: (bucket[0] * bucket[1], bucket))


def _integers(name: str, values: Any) -> np.ndarray:
    """As they are: cut to 32 bits before its range is checked, a number could become another one."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{name} is no array: {error}", hint="fill rows up to one length") from None
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} must be integers, got {array.dtype}")
    return array


def check_sizes(name: str, values: Any) -> list[int]:
    """At least one whole number, each at least 1, as Python's."""
    found = np.asarray(values)
    if found.ndim != 1 or not found.size or not np.issubdtype(found.dtype, np.integer) or found.min() < 1:
        raise ConfigError(f"{name} must be whole numbers of at least 1, got {values!r}", hint="pass a list: [1, 8]")
    return found.tolist()


def _check_range(name: str, ids: np.ndarray, size: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise DataError(f"{name} must lie in 0 .. {size - 1}, got {ids.min()} .. {ids.max()}")


def default_dtype() -> str:
    """bfloat16 on accelerators, float32 on a CPU."""
    return "float32" if platform() == "cpu" else "bfloat16"


def _has_fused_attention(config: ModelConfig, dtype: str) -> bool:
    """Whether cuDNN's attention takes this model: half precision, and a head size that is a multiple of 8 up to 128.

    It needs an NVIDIA GPU of Ampere's generation or newer; others run what XLA makes of the textbook's attention.
    """
    fits = dtype != "float32" and config.head_dim % 8 == 0 and config.head_dim <= 128
    return fits and (compute_capability() or (0, 0)) >= (AMPERE, 0)


def _activations(dtype: str) -> str:
    """Of what layers hand on: bfloat16 on GPUs, where it saves 9 to 20 % of the kernels' time (docs/speed/gpu.md).

    A CPU fuses otherwise, and float16 would leave the sums along the layers no range.
    """
    return dtype if dtype == "bfloat16" and platform() == "gpu" else "float32"


def compile_model(
    model: Served,
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    dtype: str = "float32",
    implementation: Implementation | None = None,
    table: AnyTable | None = None,
) -> CompiledModel:
    """Compile every pair of batch size and length, and run each once.

    Args:
        model: what to serve.
        batch_sizes: rows of a batch; a smaller batch is filled up to the next.
        lengths: tokens of a row, likewise.
        dtype: of weights and operands: "float32", "bfloat16" or "float16"; products sum up in float32, and on a GPU
            a bfloat16 model keeps bfloat16 between its kernels.
        implementation: of all packed matrices; ``None`` picks for each by measured cost.
        table: measured costs of this device, or their file; ``None`` takes its own.

    Raises:
        ConfigError: sizes, a dtype or an implementation that cannot be, or a cost table that is damaged or of
            another device.
        IntegrityError: masks that do not fit the parameters.
    """
    batch_sizes, lengths = check_sizes("batch_sizes", batch_sizes), check_sizes("lengths", lengths)
    if max(lengths) > model.config.max_position_embeddings:
        raise ConfigError(
            f"length {max(lengths)} is above the model's {model.config.max_position_embeddings} positions",
            hint="choose shorter lengths (--seq)",
        )
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    packed, config = assemble(model.params, model.masks, model.config, dtype)

    @cache  # buckets share what they run alike
    def prepared(layer: int, product: str, implementation: Implementation) -> Any:
        return prepare(getattr(packed.layers[layer], product).weight, implementation)

    def executable(batch: int, length: int) -> _Executable:
        rows, decisions = plan_calls(packed, batch, length, dtype, implementation, table)
        plans = layer_plans(decisions)
        params = realise(packed, plans, prepared)
        fused = _has_fused_attention(config, dtype)
        form = Form(config, model.kind, dtype, plans, fused_attention=fused, activations=_activations(dtype))
        shape = (rows, length)
        inputs = (jnp.ones(shape, jnp.int32), jnp.full(rows, length, jnp.int32), jnp.zeros(shape, jnp.int32))
        call = jax.jit(partial(forward, form)).lower(params, *inputs).compile()
        jax.block_until_ready(call(params, *inputs))
        return _Executable(call, rows, params, decisions)

    sizes = {(batch, length) for batch in batch_sizes for length in lengths}
    try:
        return CompiledModel({bucket: executable(*bucket) for bucket in sorted(sizes)}, model.kind)
    except KernelError as error:
        raise ConfigError(str(error)) from error
