"""Which matrix runs how, and why: one decision per product, layer and number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mlprune_jax.errors import ConfigError
from mlprune_jax.inference.forward import LayerParams, LayerPlan, ModelParams, tokens_read
from pallas_kernels import BlockSparse, Implementation, density, to_dense
from pallas_kernels.block_sparse_matmul.choose import Choice, choose
from pallas_kernels.block_sparse_matmul.costs import AnyTable
from pallas_kernels.block_sparse_matmul.implementations import check_implementation, runnable
from pallas_kernels.block_sparse_matmul.xla import unroll

PRODUCTS = LayerPlan._fields

Prepare = Callable[[int, str, Implementation], Any]  # layer, product, implementation -> matrix


class Decision(NamedTuple):
    """How one product of one layer runs.

    Attributes:
        layer: its number.
        product: "qkv", "attention_output", "ffn" or "ffn_output".
        shape: ``(d_in, d_out)`` of the matrix.
        block_shape: of its blocks; ``None`` for a matrix without.
        density: stored blocks over all, 1 for a matrix without.
        tokens: rows of the product's left side.
        choice: the implementation, the reason, and how many times as fast as dense it is expected to be.
    """

    layer: int
    product: str
    shape: tuple[int, int]
    block_shape: tuple[int, int] | None
    density: float
    tokens: int
    choice: Choice


def decide(
    params: ModelParams,
    batch: int,
    length: int,
    dtype: str,
    *,
    implementation: Implementation | None = None,
    side_by_side: bool = False,
    table: AnyTable | None = None,
) -> tuple[Decision, ...]:
    """A decision for every product of every layer.

    Args:
        params: packed.
        batch, length: of the token ids.
        dtype: of the operands.
        implementation: run every packed matrix with this one; ``None`` picks by measured cost.
        side_by_side: other calls run on the other cores at the same time.
        table: measured costs of the device, or their file; ``None`` takes its own.

    Raises:
        ConfigError: an implementation is asked for and there is no packed matrix for it to run.
        KernelError: one that this device cannot run, or a cost table that is damaged or of another.
    """
    weights = [getattr(layer, product).weight for layer in params.layers for product in PRODUCTS]
    if implementation not in (None, "dense") and not any(isinstance(weight, BlockSparse) for weight in weights):
        raise ConfigError(
            f"implementation {implementation!r} was asked for, but the model has no block-sparse matrix",
            hint="blocks need sides of 16, 32, 64 or 128; a model without runs dense: leave the implementation out",
        )

    def tokens(layer: int, product: str) -> int:
        return batch * (length if product == "qkv" else tokens_read(params, layer) or length)

    def one(layer: int, product: str) -> Decision:
        weight = getattr(params.layers[layer], product).weight
        rows = tokens(layer, product)
        return _decide_one(layer, product, weight, rows, dtype, implementation, side_by_side, table)

    return tuple(one(layer, product) for layer in range(len(params.layers)) for product in PRODUCTS)


def _decide_one(
    layer: int,
    product: str,
    weight: Any,
    tokens: int,
    dtype: str,
    implementation: Implementation | None,
    side_by_side: bool,
    table: AnyTable | None,
) -> Decision:
    if not isinstance(weight, BlockSparse):
        choice = Choice("dense", "no blocks to leave out", 1.0)
        return Decision(layer, product, weight.shape, None, 1.0, tokens, choice)
    kept = density(weight)
    if implementation is not None:
        check_implementation(implementation, weight)
        choice = Choice(implementation, "asked for", None)
    else:
        choice = choose(
            weight.shape,
            weight.block_shape,
            kept,
            tokens,
            dtype,
            activation="gelu" if product == "ffn" else None,  # the one kind that is measured stands for both
            side_by_side=side_by_side,
            table=table,
            allowed=runnable(weight),
        )
    return Decision(layer, product, weight.shape, weight.block_shape, kept, tokens, choice)


def layer_plans(decisions: tuple[Decision, ...]) -> tuple[LayerPlan, ...]:
    """The implementations alone, as a `Form` holds them."""
    names: list[Implementation] = [decision.choice.implementation for decision in decisions]
    return tuple(LayerPlan(*names[i : i + len(PRODUCTS)]) for i in range(0, len(names), len(PRODUCTS)))


def realise(params: ModelParams, plans: tuple[LayerPlan, ...], prepared: Prepare) -> ModelParams:
    """Parameters as the plans run them.

    Args:
        params: packed.
        plans: one per layer.
        prepared: `prepare` of one product's matrix; a caller with several plans keeps what it returns.
    """

    def layer(i: int, packed: LayerParams, plan: LayerPlan) -> LayerParams:
        return packed._replace(
            **{
                name: getattr(packed, name)._replace(weight=prepared(i, name, getattr(plan, name)))
                for name in PRODUCTS
                if isinstance(getattr(packed, name).weight, BlockSparse)
            }
        )

    layers = (layer(i, packed, plan) for i, (packed, plan) in enumerate(zip(params.layers, plans, strict=True)))
    return params._replace(layers=tuple(layers))


def prepare(weight: BlockSparse, implementation: Implementation) -> Any:
    """A packed matrix as an implementation takes it: spread out, unrolled, or as it is."""
    if implementation == "dense":
        return to_dense(weight)
    return unroll(weight) if implementation == "xla" else weight
