"""What can be pruned, as data: which matrices, in units of which size, cut together with which others.

A `Granularity` names the matrices of one layer and the size of a unit; `find_groups` lays it over a model and gives
one `Group` per score vector. Another kind (columns, whole layers) is another value here, and its price in `density`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mlprune_jax.config.geometry import LayerShape, ModelConfig
from mlprune_jax.errors import ConfigError

Path = tuple[str, ...]
BlockShape = tuple[int, int]

MATRICES = ("attention/query", "attention/key", "attention/value", "attention/output", "ffn/intermediate", "ffn/output")


@dataclass(frozen=True)
class Granularity:
    """One kind of unit.

    Attributes:
        name: "head", "row" or "block".
        coupled: score vector's name -> the matrices of a layer that it cuts together.
        unit: size of a unit along the trailing axes of a kernel, ``(d_out,)`` or ``(block_in, block_out)``; 0 stands
            for the head size.
        cuts_bias: whether a removed unit takes its bias entries along.
    """

    name: str
    coupled: Mapping[str, tuple[str, ...]]
    unit: tuple[int, ...]
    cuts_bias: bool


@dataclass(frozen=True)
class Group:
    """Units that share a score vector and a threshold in one layer.

    Attributes:
        name: key of its scores and threshold, for example "layer_0/attention".
        leaves: paths of the parameters that its mask cuts.
        units: shape of scores and mask: ``(n,)`` over output features, or ``(n_in, n_out)`` over tiles.
        unit: size of one unit along the trailing axes of a kernel.
    """

    name: str
    leaves: tuple[Path, ...]
    units: tuple[int, ...]
    unit: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of units."""
        return prod(self.units)


HEAD = Granularity("head", {"attention": MATRICES[:3]}, (0,), cuts_bias=True)
ROW = Granularity(
    "row",
    {"attention_output": MATRICES[3:4], "ffn": MATRICES[4:5], "ffn_output": MATRICES[5:]},
    (1,),
    cuts_bias=True,
)


PARTS = {"heads": "attention", "attention_output": "attention_output", "ffn": "ffn", "ffn_output": "ffn_output"}
"""What a `LayerShape` lists -> the group of `HEAD` or `ROW` that decides it."""


def block(block_shape: BlockShape) -> Granularity:
    """Tiles of ``(block_in, block_out)`` weights in each of the six matrices, each with its own threshold.

    Raises:
        ConfigError: not two whole numbers above 0.
    """
    if len(block_shape) != 2 or not all(isinstance(side, int) and side > 0 for side in block_shape):
        raise ConfigError(f"a tile has two sides, whole numbers above 0, got {block_shape!r}")
    return Granularity("block", {name: (name,) for name in MATRICES}, block_shape, cuts_bias=False)


def matrix_shapes(config: ModelConfig, shape: LayerShape) -> dict[str, tuple[int, int]]:
    """``(d_in, d_out)`` of the six matrices of one layer, in the order of `MATRICES`."""

    def kept(ids: tuple[int, ...] | None, full: int) -> int:
        return full if ids is None else len(ids)

    d = config.hidden_size
    inner = kept(shape.heads, config.num_attention_heads) * config.head_dim
    ffn = kept(shape.ffn, config.intermediate_size)
    sizes = [(d, inner)] * 3 + [(inner, kept(shape.attention_output, d)), (d, ffn), (ffn, kept(shape.ffn_output, d))]
    return dict(zip(MATRICES, sizes, strict=True))


def layer_path(index: int) -> Path:
    """Where encoder layer ``index`` lies in a model's parameters."""
    return ("bert", "encoder", f"layer_{index}")


def find_groups(config: ModelConfig, granularities: tuple[Granularity, ...]) -> tuple[Group, ...]:
    """All groups of a model, layer by layer.

    Raises:
        ConfigError: a unit does not divide its matrix, matrices cut together are not alike, or two groups cut the same
            parameter.
    """
    groups: list[Group] = []
    for i, layer_shape in enumerate(config.layer_shapes):
        shapes = matrix_shapes(config, layer_shape)
        for granularity in granularities:
            unit = tuple(size or config.head_dim for size in granularity.unit)
            parts = ("kernel", "bias") if granularity.cuts_bias else ("kernel",)
            for name, matrices in granularity.coupled.items():
                axes = _shared_axes(granularity.name, {m: shapes.get(m, ())[-len(unit) :] for m in matrices})
                if any(axis % size for axis, size in zip(axes, unit, strict=True)):
                    raise ConfigError(
                        f"layer {i}: {granularity.name} of {format_block(unit)} does not divide {matrices[0]}, "
                        f"which is {format_block(shapes[matrices[0]])} (in x out)",
                        hint="choose a block shape that divides every matrix of the model",
                    )
                units = tuple(axis // size for axis, size in zip(axes, unit, strict=True))
                leaves = tuple((*layer_path(i), *m.split("/"), part) for m in matrices for part in parts)
                groups.append(Group(f"layer_{i}/{name}", leaves, units, unit))
    cut = [leaf for group in groups for leaf in group.leaves]
    if len(set(cut)) < len(cut):
        twice = next(leaf for leaf in cut if cut.count(leaf) > 1)
        raise ConfigError(
            f"two groups cut {'/'.join(twice)}, which has one mask",
            hint="prune heads and rows first, `shrink`, then prune blocks of what is left",
        )
    return tuple(groups)


def _shared_axes(name: str, axes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The trailing axes that units of a granularity lie over, the same in all the matrices that it cuts together."""
    if unknown := sorted(matrix for matrix in axes if matrix not in MATRICES):
        raise ConfigError(f"{name} cuts unknown matrices {unknown}", hint=f"a layer has {', '.join(MATRICES)}")
    first, *others = axes.values()
    if any(other != first for other in others):
        told = ", ".join(f"{matrix} {format_block(sizes)}" for matrix, sizes in axes.items())
        raise ConfigError(f"{name} cuts matrices together whose units lie over other sizes: {told}")
    return first


def format_block(shape: tuple[int, ...]) -> str:
    """``(32, 64)`` as "32x64"."""
    return "x".join(map(str, shape))
