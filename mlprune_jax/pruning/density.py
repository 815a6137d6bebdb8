"""What a model costs, in weights: the differentiable budgets of the thresholds, and exact counts.

A *fraction* is the kept share of a group's units. One polynomial prices fractions in encoder weights: with
``sigmoid(threshold)`` it is the budget R that the penalty steers (arXiv 2105.14636v1, section 3), with
``kept / units`` the count.
Counts include biases and layer norms; both are relative to the DENSE encoder unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, gcd, isfinite, lcm, log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.pruning.binarize import Temperature, kept_units, positive_units
from mlprune_jax.pruning.granularity import HEAD, ROW, BlockShape, Group, find_groups, matrix_shapes

Number = Any  # int, float or a traced scalar: the same polynomial serves all three
Fractions = Mapping[str, Number]
Logits = Mapping[str, Float[Array, "..."]]  # by group: its threshold, or where there is none its units' scores
ByUnit = Mapping[str, Array | np.ndarray]  # by group: a number for each of its units
Budget = Callable[[Logits], Float[Array, ""]]


def encoder_size(config: ModelConfig, *, biases: bool = True) -> int:
    """Parameters of the encoder that ``config`` describes; without ``biases``, its linear kernels alone."""
    return head_row_cost(config, {}, biases=biases)


def dense_size(config: ModelConfig, *, biases: bool = True) -> int:
    """Parameters of the same encoder before anything was removed (BERT-base: 85,054,464)."""
    return encoder_size(config.model_copy(update={"layers": ()}), biases=biases)


def head_row_cost(config: ModelConfig, fractions: Fractions, *, biases: bool) -> Number:
    """Encoder weights when head and row groups keep ``fractions`` of their units (everything, where none is given)."""
    layers = enumerate(_layer_sizes(config))  # pyright: ignore[reportArgumentType]  # frozen, so hashable
    return sum(_layer_cost(i, sizes, fractions, biases=biases) for i, sizes in layers)


@lru_cache(maxsize=64)
def _layer_sizes(config: ModelConfig) -> tuple[tuple[int, ...], ...]:
    """Of each layer: hidden size, and the outputs of Q (K, V), O, FC1 and FC2."""
    outputs = ("attention/query", "attention/output", "ffn/intermediate", "ffn/output")
    shapes = [matrix_shapes(config, shape) for shape in config.layer_shapes]
    return tuple((config.hidden_size, *(layer[name][1] for name in outputs)) for layer in shapes)


def _layer_cost(index: int, sizes: tuple[int, ...], fractions: Fractions, *, biases: bool) -> Number:
    """Weights of one layer; coupling is in the products.

    A removed head also removes inputs of O, a removed FFN unit inputs of FC2.
    """
    names = ("attention", "attention_output", "ffn", "ffn_output")
    heads, rows, ffn, ffn_rows = (fractions.get(f"layer_{index}/{name}", 1) for name in names)
    d, inner, o, f1, f2 = sizes
    kernels = heads * (3 * d * inner) + heads * rows * (inner * o) + ffn * (d * f1) + ffn * ffn_rows * (f1 * f2)
    if not biases:
        return kernels
    return kernels + heads * (3 * inner) + rows * o + ffn * f1 + ffn_rows * f2 + 4 * d


@dataclass(frozen=True)
class HeadRowCost:
    """Pricing of head and row groups.

    Attributes:
        config: the model before this stage.
        groups: its head and row groups, of `HEAD` and `ROW` alone.
        block_shape: tiles that have to cover every matrix, of a block stage that follows or for the sake of speed; kept
            units are rounded up until they do.
    """

    config: ModelConfig
    groups: tuple[Group, ...]
    block_shape: BlockShape | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.groups) - set(find_groups(self.config, (HEAD, ROW))):
            raise ConfigError(f"no price for {_names(unknown)}: neither heads nor rows of this model")

    def budget(self, logits: Logits, temperature: Temperature = 1.0) -> Float[Array, ""]:
        """R of step 1: expected kernel weights over this model's, each fraction floored at one unit.

        Args:
            logits: by group, its threshold [] or, without thresholds, its units' scores.
            temperature: of the sigmoid.
        """
        expected = expected_fractions(self.groups, logits, temperature)
        fractions = {g.name: jnp.maximum(expected[g.name], 1 / g.size) for g in self.groups}
        return head_row_cost(self.config, fractions, biases=False) / encoder_size(self.config, biases=False)

    def round_up(self, kept: Mapping[str, Number]) -> dict[str, Number]:
        """Kept units, raised until tiles cover every matrix exactly; unchanged without any."""
        if self.block_shape is None:
            return dict(kept)
        return {g.name: round_up(kept[g.name], rounding_unit(g, self.block_shape), g.size) for g in self.groups}

    def count(self, kept: Mapping[str, Number]) -> Number:
        """Encoder parameters when each group keeps ``kept`` units, after rounding."""
        rounded = self.round_up(kept)
        fractions = {g.name: rounded[g.name] / g.size for g in self.groups}
        return head_row_cost(self.config, fractions, biases=True)


@dataclass(frozen=True)
class BlockCost:
    """Pricing of tile groups; what they cannot remove (biases, layer norms, matrices without tiles) always counts."""

    config: ModelConfig
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if unknown := {group for group in self.groups if len(group.unit) != 2}:
            raise ConfigError(f"no price for {_names(unknown)}: no tiles")

    def budget(self, logits: Logits, temperature: Temperature = 1.0) -> Float[Array, ""]:
        """R of step 2: expected tiles over this model's tiles."""
        expected = expected_fractions(self.groups, logits, temperature)
        return jnp.stack([expected[g.name] * g.size for g in self.groups]).sum() / sum(g.size for g in self.groups)

    def round_up(self, kept: Mapping[str, Number]) -> dict[str, Number]:
        """Tiles need no rounding."""
        return dict(kept)

    def count(self, kept: Mapping[str, Number]) -> Number:
        """Encoder parameters when each group keeps ``kept`` tiles."""
        fixed = encoder_size(self.config) - sum(g.size * g.unit[0] * g.unit[1] for g in self.groups)
        return fixed + sum(kept[g.name] * g.unit[0] * g.unit[1] for g in self.groups)


Cost = HeadRowCost | BlockCost


def _names(groups: set[Group]) -> str:
    return ", ".join(sorted(group.name for group in groups))[:200]


def expected_fractions(
    groups: tuple[Group, ...], logits: Logits, temperature: Temperature
) -> dict[str, Float[Array, ""]]:
    """Of each group, the mean of ``sigmoid(logit / temperature)``: of its one threshold or over its scores, float32."""
    wide = {g.name: jnp.asarray(logits[g.name], jnp.float32) for g in groups}  # float16 cannot hold a matrix's size
    return {name: jnp.mean(jax.nn.sigmoid(logit / temperature)) for name, logit in wide.items()}


def rounding_unit(group: Group, block_shape: BlockShape) -> int:
    """How many units of a head or row group fit tiles exactly.

    Heads and FFN units are outputs of one matrix and inputs of the next, so both block sides must divide them; the
    rows of O and FC2 are outputs only.
    """
    block_in, block_out = block_shape
    both_sides = group.name.endswith(("/attention", "/ffn"))
    side = lcm(block_in, block_out) if both_sides else block_out
    return side // gcd(side, group.unit[0])


def round_up(kept: Number, unit: int, limit: int) -> Number:
    """The next multiple of ``unit``, at most ``limit``; works on ints and traced integers alike."""
    rounded = (kept + unit - 1) // unit * unit
    return min(rounded, limit) if isinstance(rounded, int) else jnp.minimum(rounded, limit)


def counted_budget(cost: Cost, *, temperature: Temperature = 1.0, soft: bool = False) -> Budget:
    """A budget whose value is the exact count, over the dense encoder, and whose gradient is R's.

    R is only a steering quantity: ``ceil`` and the rounding to tiles put the count above it, by several points for
    small models. Passing the count through R's gradient aims the penalty at what the user asked for.

    Args:
        cost: prices kept units.
        temperature: of the sigmoid in R.
        soft: a budget of scores, of which those above 0 stay, instead of one of thresholds.

    Returns:
        A function of thresholds [] or scores [*units] by group name to a float32 scalar; 1 = the dense encoder.
    """
    dense = dense_size(cost.config)
    scale = encoder_size(cost.config) / dense

    def units(group: Group, logits: Float[Array, "..."]) -> Int[Array, ""]:
        return positive_units(logits) if soft else kept_units(logits, group.size, temperature)

    def budget(logits: Logits) -> Float[Array, ""]:
        expected = cost.budget(logits, temperature) * scale
        kept = {g.name: units(g, logits[g.name]) for g in cost.groups}
        counted = jnp.asarray(cost.count(kept), jnp.float32) / dense
        return expected + jax.lax.stop_gradient(counted - expected)

    return budget


def density(cost: Cost, kept: Mapping[str, int]) -> float:
    """Kept encoder parameters over the dense encoder's, by count."""
    return cost.count(kept) / dense_size(cost.config)


def smallest_density(cost: Cost) -> float:
    """Density with one unit left in each group: the least a target can be."""
    return density(cost, {g.name: 1 for g in cost.groups})


def check_reachable(cost: Cost, target: float) -> None:
    """Refuse a target below `smallest_density`.

    Raises:
        ConfigError: with what is the least; or the target is no finite number.
    """
    if not isfinite(target):
        raise ConfigError(f"a density must be a finite number, got {target}")
    if (least := smallest_density(cost)) > target:
        if isinstance(cost, BlockCost):
            what, way = "one block in each matrix", ", or use smaller blocks (blocks.shape)"
        elif cost.block_shape is None:
            what, way = "one head and one row in each layer", ""
        else:
            what = "one head and one row in each layer, rounded up to tiles of {}x{},".format(*cost.block_shape)
            way = ", or use smaller tiles (blocks.shape, or heads_rows.multiple_of)"
        raise ConfigError(
            f"density {target:g} cannot be reached: {what} already keeps {least:.4f} of the encoder",
            hint=f"raise the density{way}",
        )


def _check_finite(what: str, cost: Cost, values: Mapping[str, Any]) -> None:
    """Refuse what a diverged training leaves: any order of it is an accident."""
    if odd := [g.name for g in cost.groups if not np.isfinite(np.asarray(values[g.name], np.float32)).all()]:
        raise ConfigError(
            f"{what} of {odd[0]} and {len(odd) - 1} other groups are not finite: they say nothing of what to cut",
            hint="go back to a state from before the training diverged, and lower its learning rate",
        )


def cut_to(cost: Cost, thresholds: Mapping[str, float], target: float, *, temperature: float = 1.0) -> dict[str, int]:
    """Units to keep in each group so that the count is not above ``target``, and no unit more of any group would fit.

    Shifts all thresholds by one common amount, found by bisection, to just below the target; then gives single units
    back, those first that are nearest to being kept, until none fits any more.

    Args:
        cost: prices kept units.
        thresholds: learned logits by group.
        target: density over the dense encoder, by count.
        temperature: of the thresholds' sigmoid.

    Returns:
        Kept units by group, at least one each, before rounding to tiles (`Cost.round_up`).

    Raises:
        ConfigError: the target lies below what one unit per group costs, or it or a threshold is not finite.
    """
    check_reachable(cost, target)
    _check_finite("thresholds", cost, thresholds)

    def wanted(shift: float) -> dict[str, float]:
        return {g.name: _sigmoid((float(thresholds[g.name]) + shift) / temperature) * g.size for g in cost.groups}

    def kept_at(shift: float) -> dict[str, int]:
        return threshold_counts(cost, {name: float(t) + shift for name, t in thresholds.items()}, temperature)

    # Thresholds may stand anywhere: wide enough that both ends reach all of them, nothing kept and everything.
    reach = 60.0 * temperature + max(abs(float(thresholds[g.name])) for g in cost.groups)
    low, high = -reach, reach
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if density(cost, kept_at(middle)) <= target else (low, middle)
    kept, ideal = kept_at(low), wanted(high)
    by_need = sorted(cost.groups, key=lambda g: kept[g.name] - ideal[g.name])
    open_groups = [g for g in by_need if kept[g.name] < g.size]
    while open_groups:
        group = open_groups.pop(0)
        step = cost.round_up(kept)[group.name] + 1
        if step <= group.size and density(cost, {**kept, group.name: step}) <= target:
            kept[group.name] = step
            open_groups.append(group)
    return kept


def cut_scores(cost: Cost, scores: ByUnit, target: float) -> dict[str, int]:
    """Units to keep in each group so that the count is not above ``target``, the highest scores of all groups first.

    One threshold for all: groups keep what scores above it. Of equal scores every group keeps the same share. Then
    single units follow, in the same order, as long as one of any group fits.

    Args:
        cost: prices kept units.
        scores: by group.
        target: density over the dense encoder, by count.

    Returns:
        Kept units by group, at least one each, before rounding to tiles (`Cost.round_up`).

    Raises:
        ConfigError: the target lies below what one unit per group costs, or it or a score is not finite.
    """
    check_reachable(cost, target)
    _check_finite("scores", cost, scores)
    names, sizes = [group.name for group in cost.groups], [group.size for group in cost.groups]
    falling = np.concatenate([np.sort(np.ravel(scores[name]))[::-1] for name in names])
    groups, ranks = np.repeat(np.arange(len(names)), sizes), np.concatenate([np.arange(size) for size in sizes])
    order = np.lexsort(((ranks + 0.5) / np.repeat(sizes, sizes), -falling))
    groups, ranks = groups[order], ranks[order]

    def first(units: int) -> dict[str, int]:
        counts = np.maximum(np.bincount(groups[:units], minlength=len(names)), 1)
        return dict(zip(names, counts.tolist(), strict=True))

    fits, too_many = 0, order.size + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if density(cost, first(middle)) <= target else (fits, middle)
    kept, open_names = first(fits), set(names)
    for name, rank in zip((names[group] for group in groups[fits:]), ranks[fits:].tolist(), strict=True):
        if not open_names:
            break
        if name not in open_names or rank < cost.round_up(kept)[name]:
            continue
        if density(cost, {**kept, name: rank + 1}) <= target:
            kept[name] = rank + 1
        else:
            open_names.remove(name)
    return kept


def threshold_counts(cost: Cost, thresholds: Mapping[str, float], temperature: float = 1.0) -> dict[str, int]:
    """Units that `binarize` keeps under these thresholds, by group, in exact arithmetic."""
    return {g.name: max(1, ceil(_sigmoid(thresholds[g.name] / temperature) * g.size)) for g in cost.groups}


def counted_logits(cost: Cost, kept: Mapping[str, int], temperature: float = 1.0) -> dict[str, float]:
    """Thresholds under which `threshold_counts` gives ``kept``."""
    shares = {g.name: (kept[g.name] - 0.5) / g.size for g in cost.groups}
    return {name: temperature * log(share / (1 - share)) for name, share in shares.items()}


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -700 else 0.0
