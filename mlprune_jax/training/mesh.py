"""Where arrays lie: one mesh of all devices of all processes, with axes ``data`` and ``fsdp``.

A batch is split over both axes; parameters, optimiser state and frozen parameters over ``fsdp`` alone, and copied over
``data``. The compiler derives every exchange from that (GSPMD), so one program serves one core and many hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlprune_jax.errors import ConfigError

DATA, FSDP = "data", "fsdp"
SMALLEST_SPLIT = 1 << 14
"""Elements below which an array is copied rather than split: exchanging it would cost more than it saves."""


class Layout:
    """Places states and batches on a mesh of ``len(devices) / fsdp`` x ``fsdp`` devices.

    Args:
        fsdp: devices over which parameters are split.
        devices: all of jax's, of every process, unless given.

    Raises:
        ConfigError: the devices cannot be split so.
    """

    def __init__(self, fsdp: int = 1, *, devices: Sequence[Any] | None = None):
        # By process: each provides the next rows of a batch, and those are the next devices' rows.
        found = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
        if len(found) % fsdp:
            raise ConfigError(f"fsdp {fsdp} does not divide the {len(found)} devices", hint="use a divisor, or 1")
        grid = np.array(found).reshape(-1, fsdp)
        # Auto axes: with explicit ones flax's embedding refuses sharded ids.
        self.mesh = Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec((DATA, FSDP)))
        self._whole = jax.jit(lambda leaf: leaf, out_shardings=self.everywhere)

    def check_rows(self, rows: int, what: str) -> None:
        """See that a batch of ``rows`` can be split evenly.

        Raises:
            ConfigError: it cannot.
        """
        if rows % self.mesh.size:
            raise ConfigError(
                f"{what} of {rows} rows cannot be split over {self.mesh.size} devices",
                hint=f"use a multiple of {self.mesh.size}, or fewer devices",
            )

    def shardings(self, tree: Any) -> Any:
        """Of every leaf: its longest axis that ``fsdp`` divides is split, small leaves are copied."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._split(np.shape(leaf))), tree)

    def place(self, tree: Any) -> Any:
        """A pytree of equal values on every process, laid out as `shardings` says."""
        return jax.tree.map(_from_host, tree, self.shardings(tree))

    def batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A global batch from this process's rows of it, in the order of processes."""
        return {name: jax.make_array_from_process_local_data(self._rows, rows) for name, rows in batch.items()}

    def key(self, seed: int) -> jax.Array:
        """A random key, the same on every device."""
        return jax.jit(lambda: jax.random.key(seed), out_shardings=self.everywhere)()

    def to_host(self, tree: Any) -> Any:
        """A pytree of numpy arrays, whole on every process."""
        # Leaf by leaf: no device has to hold the whole tree beside its share.
        return jax.tree.map(lambda leaf: jax.device_get(leaf if self.mesh.size == 1 else self._whole(leaf)), tree)

    def _split(self, shape: tuple[int, ...]) -> PartitionSpec:
        fsdp = self.mesh.shape[FSDP]
        fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if fsdp == 1 or not fitting or np.prod(shape) < SMALLEST_SPLIT:
            return PartitionSpec()
        longest = max(fitting, key=lambda axis: shape[axis])
        return PartitionSpec(*(FSDP if axis == longest else None for axis in range(len(shape))))


def _from_host(leaf: Any, sharding: NamedSharding) -> jax.Array:
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
