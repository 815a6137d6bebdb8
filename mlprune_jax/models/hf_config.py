"""``config.json`` in Hugging Face's words and ``pruning.json`` beside it, in and out."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from mlprune_jax.config.geometry import ModelConfig
from mlprune_jax.errors import ConfigError, ModelError
from mlprune_jax.models.families import FAMILIES, Family
from mlprune_jax.models.model_folder import CONFIG, PRUNING, read_model_json
from mlprune_jax.models.names import Kind

_GEOMETRY = tuple(name for name in ModelConfig.model_fields if name != "layers")
_REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False}
_EXAMPLE = "Choose a BERT encoder, for example google-bert/bert-base-uncased."
_ARCHITECTURES: dict[Kind, str] = {
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "span": "BertForQuestionAnswering",
}


class StoredConfig(NamedTuple):
    """What a folder's JSON files say: the geometry as a BERT's, ``config.json`` without its nulls, and its family."""

    config: ModelConfig
    raw: dict[str, Any]
    family: Family

    @property
    def first_position(self) -> int:
        """The first row of the stored position embeddings that is one."""
        return self.family.first_position(self.config)


def read_config(folder: Path) -> StoredConfig:
    """Read ``config.json`` and, where it exists, ``pruning.json``; keys that we do not use are ignored.

    Raises:
        ModelError: where the model is not an encoder of the kinds we run, or a value is out of range.
    """
    path = folder / CONFIG
    # Hugging Face writes null for "the default".
    raw = read_model_json(path)
    said = {name: value for name, value in raw.items() if value is not None}
    family = _family(said.get("model_type"), path)
    for key, wanted in _REQUIRED.items():
        if said.get(key, wanted) != wanted:
            raise ModelError(f"{path}: {key} is {reprlib.repr(said[key])}, only {wanted!r} is supported", hint=_EXAMPLE)
    # Other families' configs may have BERT's words too.
    words = {name: own if (own := family.settings.get(name)) in said else name for name in _GEOMETRY}
    fields = dict(family.defaults) | {name: said[word] for name, word in words.items() if word in said}
    try:
        dense = ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{path} does not describe a model we run: {_explain(error, words)}") from error
    if family.embedding_size is not None:
        width = said.get("embedding_size", family.embedding_size)
        if width != dense.hidden_size:
            raise ModelError(
                f"{path}: embedding_size is {reprlib.repr(width)}, only hidden_size's {dense.hidden_size} is supported",
                hint=_EXAMPLE,
            )
    return StoredConfig(_with_layers(_counted_positions(dense, family, path), folder / PRUNING), said, family)


def _counted_positions(config: ModelConfig, family: Family, path: Path) -> ModelConfig:
    """The geometry with the positions that tokens have, for all rows that are stored."""
    positions = config.max_position_embeddings - family.first_position(config)
    if positions < 1:
        raise ModelError(
            f"{path}: max_position_embeddings is {config.max_position_embeddings}, and tokens have those behind "
            f"pad_token_id's {config.pad_token_id}: none is left",
            hint="Take the config.json of the original folder.",
        )
    return config.model_copy(update={"max_position_embeddings": positions})


def _family(model_type: object, path: Path) -> Family:
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise ModelError(
        f"{path}: model_type is {reprlib.repr(model_type)}, only {', '.join(FAMILIES)} are supported",
        hint='Write "model_type": "bert" into it if the model is one.' if model_type is None else _EXAMPLE,
    )


def _with_layers(dense: ModelConfig, path: Path) -> ModelConfig:
    if not path.is_symlink() and not path.exists():
        return dense
    stored = read_model_json(path)
    if "layers" not in stored:
        raise ModelError(f"{path} has no layers: what each layer keeps", hint="Take the file of the original folder.")
    try:
        return ModelConfig.model_validate({**dense.model_dump(), "layers": stored["layers"]})
    except ValidationError as error:
        raise ModelError(f"{path} does not fit {CONFIG}: {_explain(error, {})}") from error


def _explain(error: ValidationError, words: Mapping[str, str]) -> str:
    """What is wrong, each setting by the word that the file has for it."""
    return "; ".join(
        f"{'.'.join(words.get(str(part), str(part)) for part in fault['loc']) or 'values'}: {fault['msg'][:300]}"
        f" (got {reprlib.repr(fault['input'])})"
        for fault in error.errors()[:3]
    )


def architectures(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of transformers that a folder's ``config.json`` names."""
    named = raw.get("architectures")
    return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()


def stored_labels(stored: StoredConfig, path: Path, num_labels: int) -> tuple[str, ...] | None:
    """The class names of ``id2label`` in order, or None where there are none.

    Raises:
        ModelError: where they are not ``num_labels`` names numbered from 0.
    """
    names = stored.raw.get("id2label")
    if names is None:
        return None
    ids = [str(i) for i in range(num_labels)]
    named = isinstance(names, dict) and sorted(names) == sorted(ids) and all(type(names[i]) is str for i in ids)
    if not named or len(set(names.values())) != num_labels:
        raise ModelError(
            f"{path}: id2label must give the {num_labels} labels of the stored classifier, '0', '1', ..., names that "
            f"differ, got {reprlib.repr(names)}",
            hint="Correct or remove id2label and label2id.",
        )
    return tuple(names[i] for i in ids)


def make_config(
    config: ModelConfig, *, kind: Kind, num_labels: int, labels: Sequence[str] | None, extra: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        config: geometry; what each layer keeps does not go here but into ``pruning.json``.
        kind: the task head's kind.
        num_labels: its outputs.
        labels: one name per class; LABEL_0, LABEL_1, ... where there are none; only classification has them.
        extra: further keys; ours win over them.

    Raises:
        ConfigError: where the names are not ``num_labels`` different ones.
    """
    ours: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": "bert",
        **config.model_dump(include=set(_GEOMETRY)),
        "position_embedding_type": "absolute",
        "dtype": "float32",
    }
    if kind == "regression":
        ours["problem_type"] = "regression"
    if kind != "span":
        given = tuple(labels or ()) if kind == "classification" else ()
        names = given or tuple(f"LABEL_{i}" for i in range(num_labels))
        if len(set(names)) != num_labels or len(names) != num_labels:
            raise ConfigError(f"labels must be {num_labels} different names, one per output of the head, got {names}")
        ours["id2label"] = {str(i): name for i, name in enumerate(names)}
        ours["label2id"] = {name: i for i, name in enumerate(names)}
    return {**(extra or {}), **ours}


def make_pruning(config: ModelConfig, extra: dict[str, Any] | None) -> dict[str, Any] | None:
    """The content of ``pruning.json``, or None for a dense model with nothing to add; ``layers`` is the config's."""
    if not config.layers and extra is None:
        return None
    return {**(extra or {}), "layers": [layer.model_dump(mode="json") for layer in config.layers]}
