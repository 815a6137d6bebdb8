"""What a checkpoint's headers must agree on with the model that is asked for, before any data is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mlprune_jax.errors import ConfigError, ModelError
from mlprune_jax.models.families import Family
from mlprune_jax.models.model_folder import CONFIG, PRUNING
from mlprune_jax.models.names import HEADS, POOLER, Entry, Kind, is_ignored
from mlprune_jax.models.safetensors_io import FLOATS, Stored, some

_log = logging.getLogger(__name__)

_OTHER_CLASSIFIERS = ("ForTokenClassification", "ForMultipleChoice")
_POSITIONS = "bert.embeddings.position_embeddings.weight"


def fixed_labels(kind: Kind) -> int | None:
    """Outputs of the heads that have one possible size: a value for regression, start and end for spans."""
    return {"regression": 1, "span": 2}.get(kind)


def check_labels(num_labels: int | None, kind: Kind) -> None:
    """See that a kind exists and can have this number of labels; raises `ConfigError` where not."""
    if kind not in HEADS:
        raise ConfigError(f"kind must be one of {', '.join(HEADS)}, got {kind!r}")
    wanted = fixed_labels(kind)
    if num_labels is not None and (num_labels < 1 or num_labels != (wanted or num_labels)):
        raise ConfigError(f"num_labels must be {wanted or 'at least 1'} for {kind}, got {num_labels}")


def recognised(found: dict[str, Stored], folder: Path, kind: Kind, family: Family) -> dict[str, Stored]:
    """The tensors that matter by BERT's name; none, or one twice in different spellings, is an error."""
    weights: dict[str, Stored] = {}
    left_out = []
    for stored in found.values():
        name = family.bert_name(stored.name)
        if name is None or is_ignored(name, kind):
            left_out.append(stored.name)
        elif name in weights:
            raise ModelError(f"{folder} holds {some([name])} twice, as {some([weights[name].name, stored.name])}")
        else:
            weights[name] = stored
    if not any(name.startswith("bert.") for name in weights):
        raise ModelError(
            f"the weights in {folder} have no name of a BERT's tensors, as bert.encoder.layer.0.output.dense.weight: "
            f"they hold {some(sorted(found)) or 'nothing'}",
            hint="rename them, or save the model by transformers' BertModel or a class with a head on it",
        )
    if kind != "span" and any(name.startswith("classifier.") for name in left_out):
        _log.warning("%s: its classifier computes something else than a BERT's and is left out", folder)
    if left_out:
        _log.info("%s: not needed for %s and left out: %s", folder, kind, some(left_out))
    return weights


def from_first_position(weights: dict[str, Stored], first: int) -> dict[str, Stored]:
    """The tensors with the position embeddings from row ``first`` on, which is the first token's."""
    stored = weights.get(_POSITIONS)
    return weights if stored is None else weights | {_POSITIONS: stored.without_rows(first)}


def without_other_heads(weights: dict[str, Stored], named: Sequence[str], folder: Path) -> dict[str, Stored]:
    """The tensors without a classifier that answers another question than which class a text is of.

    Args:
        weights: what the checkpoint holds, by canonical name.
        named: the classes of transformers that it says it is of; these heads bear the same name in all of them.
        folder: for the log.
    """
    others = [name for name in named if name.endswith(_OTHER_CLASSIFIERS)]
    if not others:
        return weights
    _log.warning("%s is a %s: its classifier is left out", folder, some(sorted(others)))
    return {name: stored for name, stored in weights.items() if not name.startswith("classifier.")}


def head_labels(weights: dict[str, Stored], asked: int | None, kind: Kind, folder: Path) -> int:
    """The number of labels: the stored head's, which must be those asked for; without a head, those asked for."""
    head = weights.get(f"{HEADS[kind]}.weight")
    asked = asked or fixed_labels(kind)
    if head is None:
        if asked is None:
            raise ModelError(
                f"{folder} has no trained head for {kind}, to take the number of labels from",
                hint="fine-tune it with `mlprune prune`; from Python, num_labels makes a fresh head",
            )
        return asked
    found = head.shape[0] if len(head.shape) == 2 else 0
    if found < 1 or found != (asked or found):
        raise ModelError(
            f"{head.name} in {folder} has shape {head.shape}, so {found} labels; {asked or 'at least 1'} asked for",
            hint="Use the checkpoint for its own task, or one without a head to train a new one.",
        )
    return found


def fresh_names(weights: dict[str, Stored], kind: Kind) -> set[str]:
    """Names to initialise: the head where all of it is missing, and then the pooler where all of that is.

    Under a stored head a missing pooler is damage: the head was trained on it.
    """
    fresh: set[str] = set()
    for module in (HEADS[kind], POOLER)[: 1 if kind == "span" else 2]:
        names = {f"{module}.weight", f"{module}.bias"}
        if names & weights.keys():
            break
        fresh |= names
    return fresh


def check_weights(weights: dict[str, Stored], table: Sequence[Entry], folder: Path) -> None:
    """See that a checkpoint has exactly the table's tensors, in shape and type.

    Args:
        weights: what the checkpoint holds, by canonical name.
        table: what the model needs of it.
        folder: for the message.

    Raises:
        ModelError: lists the missing, unexpected, misshapen and mistyped tensors.
    """
    missing = [entry.name for entry in table if entry.name not in weights]
    names = {entry.name for entry in table}
    unexpected = [stored.name for name, stored in weights.items() if name not in names]
    there = [(entry, weights[entry.name]) for entry in table if entry.name in weights]
    shapes = [
        f"{stored.name} {stored.shape} but {entry.stored_shape} by the config"
        for entry, stored in there
        if stored.shape != entry.stored_shape
    ]
    dtypes = [f"{stored.name} {stored.dtype}" for _, stored in there if stored.dtype not in FLOATS]
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, f"not {', '.join(FLOATS)}": dtypes}
    if any(faults.values()):
        listed = "".join(f"\n  {len(items)} {what}: {some(items)}" for what, items in faults.items() if items)
        mixed = f"Take {CONFIG}, {PRUNING} (of a pruned model) and the weights from one and the same folder."
        raise ModelError(
            f"the weights in {folder} are not those of the model that its {CONFIG} describes:{listed}",
            hint=mixed if missing or unexpected or shapes else "Save the weights as float32.",
        )
