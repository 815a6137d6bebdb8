"""What masks say, read back."""

from functools import reduce
from operator import getitem
from typing import Any

from mlprune_jax.pruning.masks import Groups, Masks


def count_kept(groups: Groups, masks: Masks) -> dict[str, int]:
    """Units kept in each group."""
    leaves: dict[str, Any] = {g.name: reduce(getitem, g.leaves[0], masks) for g in groups}
    return {name: int(leaf.sum()) for name, leaf in leaves.items()}
