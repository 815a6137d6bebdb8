"""The one table of BERT's tensors: Hugging Face's name, our path, the shape; loading and saving both read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mlprune_jax.config.geometry import LayerShape, ModelConfig

Kind = Literal["classification", "regression", "span"]
ParamPath = tuple[str, ...]
Shape = tuple[int, ...]

HEADS: dict[Kind, str] = {"classification": "classifier", "regression": "classifier", "span": "qa_outputs"}
"""Hugging Face's name of each kind's head."""

POOLER = "bert.pooler.dense"

_OLD_SUFFIXES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Entry(NamedTuple):
    """One tensor of a model.

    Attributes:
        name: Hugging Face's name, with the ``bert.`` prefix.
        path: where the tensor lies in our parameter tree.
        shape: shape in our tree.
        transposed: True for linear layers, whose file holds [d_out, d_in] for our kernel [d_in, d_out].
    """

    name: str
    path: ParamPath
    shape: Shape
    transposed: bool

    @property
    def stored_shape(self) -> Shape:
        """Shape in the file."""
        return self.shape[::-1] if self.transposed else self.shape


def tensor_table(config: ModelConfig, *, num_labels: int, kind: Kind) -> tuple[Entry, ...]:
    """Every tensor of a model with its task head, embeddings first.

    Args:
        config: geometry; ``config.layers`` gives the kept sizes of a shrunk model.
        num_labels: output features of the head.
        kind: "span" models have no pooler.
    """
    d = config.hidden_size
    entries = [*_embeddings(config)]
    for i, shape in enumerate(config.layer_shapes):
        entries += _layer(config, shape, f"bert.encoder.layer.{i}", ("bert", "encoder", f"layer_{i}"))
    if kind != "span":
        entries += _linear(POOLER, ("bert", "pooler"), d, d)
    return (*entries, *_linear(HEADS[kind], ("head",), d, num_labels))


def expected_shapes(config: ModelConfig, *, num_labels: int, kind: Kind) -> dict[ParamPath, Shape]:
    """The shape of every parameter, by its path in our tree; arguments as in `tensor_table`."""
    return {entry.path: entry.shape for entry in tensor_table(config, num_labels=num_labels, kind=kind)}


def canonical_name(name: str) -> str:
    """A file's tensor name as the table spells it: with the ``bert.`` prefix, and no LayerNorm gamma or beta."""
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    for old, new in _OLD_SUFFIXES.items():
        if name.endswith(f".{old}"):
            return name.removesuffix(old) + new
    return name


def is_ignored(name: str, kind: Kind) -> bool:
    """True for tensors that may lie in a checkpoint and have no place in the model.

    They are the position buffer of old files, the pre-training heads, other kinds' heads and, for spans, the pooler.

    Args:
        name: canonical name.
        kind: what the model is loaded for.
    """
    others = tuple(f"{head}." for head in HEADS.values() if head != HEADS[kind])
    if name == "bert.embeddings.position_ids" or name.startswith(("cls.", *others)):
        return True
    return kind == "span" and name.startswith(f"{POOLER}.")


def _linear(name: str, path: ParamPath, d_in: int, d_out: int) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "kernel"), (d_in, d_out), True)
    yield Entry(f"{name}.bias", (*path, "bias"), (d_out,), False)


def _norm(name: str, path: ParamPath, d: int) -> Iterator[Entry]:
    yield Entry(f"{name}.LayerNorm.weight", (*path, "norm", "scale"), (d,), False)
    yield Entry(f"{name}.LayerNorm.bias", (*path, "norm", "bias"), (d,), False)


def _embeddings(config: ModelConfig) -> Iterator[Entry]:
    name, path, d = "bert.embeddings", ("bert", "embeddings"), config.hidden_size
    rows = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
    for part, count in zip(("word", "position", "token_type"), rows, strict=True):
        yield Entry(f"{name}.{part}_embeddings.weight", (*path, part, "embedding"), (count, d), False)
    yield from _norm(name, path, d)


def _layer(config: ModelConfig, shape: LayerShape, name: str, path: ParamPath) -> Iterator[Entry]:
    d, attention, ffn = config.hidden_size, (*path, "attention"), (*path, "ffn")
    context = _kept(shape.heads, config.num_attention_heads) * config.head_dim
    units = _kept(shape.ffn, config.intermediate_size)
    for part in ("query", "key", "value"):
        yield from _linear(f"{name}.attention.self.{part}", (*attention, part), d, context)
    yield from _linear(
        f"{name}.attention.output.dense", (*attention, "output"), context, _kept(shape.attention_output, d)
    )
    yield from _norm(f"{name}.attention.output", attention, d)
    yield from _linear(f"{name}.intermediate.dense", (*ffn, "intermediate"), d, units)
    yield from _linear(f"{name}.output.dense", (*ffn, "output"), units, _kept(shape.ffn_output, d))
    yield from _norm(f"{name}.output", ffn, d)


def _kept(ids: tuple[int, ...] | None, size: int) -> int:
    return size if ids is None else len(ids)
