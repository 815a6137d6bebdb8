"""Checkpoints of training state: the only file that imports orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mlprune_jax.errors import IntegrityError


def save_state(folder: Path, tree: Any) -> None:
    """Write a pytree of arrays to ``folder``; the folder appears only once it is complete."""
    ocp.save(str(folder.resolve()), tree, overwrite=True)


def load_state(folder: Path, like: Any) -> Any:
    """Read a pytree back.

    Args:
        folder: written by `save_state`.
        like: arrays or shapes of the wanted tree; the dtypes and shapes stored must be the same.

    Raises:
        IntegrityError: the folder is no such checkpoint, or it is damaged.
    """
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    try:
        return ocp.load(str(folder.resolve()), abstract)
    except Exception as error:
        # Orbax raises many unrelated classes for damage; the user needs one message.
        raise IntegrityError(
            f"{folder} does not hold the expected state: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="remove the stage's folder and resume: the stage is run again",
        ) from error
