"""What training changes, in one pytree; everything else is a function of (seed, step)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mlprune_jax.training.mesh import Layout

Params = dict[str, Any]


class TrainState(NamedTuple):
    """State of one stage.

    Attributes:
        step: batches taken, the skipped ones included.
        skipped: steps in a row whose loss or gradient was not finite; they change nothing else.
        skipped_in_all: such steps since the first.
        trained: ``{"params", "scores", "thresholds"}``; the last two absent where nothing is learned to be pruned.
        opt_state: the optimiser's.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_all: Int[Array, ""]
    trained: dict[str, Any]
    opt_state: Any


class Fixed(NamedTuple):
    """What a step reads and never changes.

    Attributes:
        params: frozen parameters, the rest of ``trained["params"]``.
        masks: masks that are not learned, or ``None``.
        teacher: the teacher's parameters, or ``None``.
    """

    params: Params
    masks: dict[str, Any] | None = None
    teacher: Params | None = None


def init_state(trained: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; every leaf is a buffer of its own, since the step donates them all.

    Dtypes are strong, as those of a state read back are: a weak one would be another program.
    """
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, zero, zero, trained, optimizer.init(trained))
    return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype, copy=True), state)


def place_state(layout: Layout, trained: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """`init_state` laid out on a mesh; nothing of it is ever whole where ``layout`` splits it."""
    make = partial(init_state, optimizer=optimizer)
    shardings = layout.shardings(jax.eval_shape(make, trained))
    return jax.jit(make, out_shardings=shardings)(layout.place(trained))


def split_frozen(params: Params, *, freeze_embeddings: bool) -> tuple[Params, Params]:
    """``(trained, frozen)`` parameters; frozen ones cost neither gradients nor optimiser state."""
    if not freeze_embeddings:
        return params, {}
    bert = dict(params["bert"])
    frozen = {"bert": {"embeddings": bert.pop("embeddings")}}
    return {**params, "bert": bert}, frozen


def merge(trained: Params, frozen: Params) -> Params:
    """The inverse of `split_frozen`: both nested dicts in one."""
    merged = dict(trained)
    for name, value in frozen.items():
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged
