"""Texts to token ids: a tokenizer from a local folder, and a whole split encoded at once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from mlprune_jax.data.tasks import Examples
from mlprune_jax.data.truncation import longest_first
from mlprune_jax.errors import ConfigError, ModelError
from mlprune_jax.files import AnyPath, home_path

_NO_TOKENIZER = (
    "pass a folder that holds a tokenizer; of a vocab.json with merges.txt, or a sentencepiece model, transformers' "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...) makes a tokenizer.json"
)
_FILES = ("tokenizer.json", "vocab.txt")  # one of them
_CHUNK = 4096  # texts handed over at once: enough to keep all cores busy, little enough to keep in memory as lists
_CHARACTERS = 2**22  # of them together, where texts are long; a token takes some 200 bytes for a while


# Transformers puts another module in its place while it is imported: until then, other threads find half of it.
_IMPORTING = threading.Lock()

Tokenizer = Any  # a transformers tokenizer; its attributes are dynamic, so no protocol can check them


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: one long array, in which example ``i`` is ``offsets[i] : offsets[i + 1]``.

    Attributes:
        input_ids: ids of all examples.
        token_type_ids: 0 in the first text of an example and its markers, 1 in the second; or all 0, as a RoBERTa's.
        offsets: where the examples begin, and the end of the last.
        labels: class ids, targets, or first and last token of answers; None where the split has none.
        pad_id: the token that fills up a batch's rows.
        skipped: damaged examples that were left out of the split.
        truncated: examples that lost tokens to their greatest length; of questions, those that did themselves.
    """

    input_ids: Int32[np.ndarray, " tokens"]
    token_type_ids: Int32[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " edges"]
    labels: Int32[np.ndarray, " examples"] | Float32[np.ndarray, " examples"] | Int32[np.ndarray, "examples 2"] | None
    pad_id: int
    skipped: int = field(default=0, kw_only=True)
    truncated: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """Tokens of each example."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """Sha256 over everything: splits of the same digest train alike."""
        found = hashlib.sha256(str(self.pad_id).encode())
        for array in (self.input_ids, self.token_type_ids, self.offsets, self.labels):
            if array is not None:
                found.update(array.tobytes())
        return found.hexdigest()


def load_tokenizer(folder: AnyPath) -> Tokenizer:
    """Load the tokenizer of a model folder, without network and without running code from the folder.

    Args:
        folder: holds ``tokenizer.json`` or ``vocab.txt``.

    Returns:
        The transformers tokenizer; what its file says of truncation and padding is left out. Compare its ``len`` with
        the model's ``vocab_size``.

    Raises:
        ModelError: there is none, it cannot be read, or it is not what its files say.
    """
    folder = home_path(folder)
    # Checked here because transformers makes up an empty vocabulary where it finds no file.
    if not any((folder / name).is_file() for name in _FILES):
        raise ModelError(f"{folder}: no tokenizer.json or vocab.txt", hint=_NO_TOKENIZER)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else a notice that torch is missing
    with _IMPORTING:
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the file parsers raise all kinds, a bare Exception among them
        reason = " ".join(str(error).split())[:300]
        hint = "save it again, and see that config.json is whole, which is read too"
        raise ModelError(f"{folder}: the tokenizer cannot be read: {reason}", hint=hint) from None
    own = tokenizer.vocab_files_names.values()
    if own and not any((folder / name).is_file() for name in own):
        raise ModelError(
            f"{folder} has none of the files that a {type(tokenizer).__name__} is read from: {', '.join(own)}",
            hint="name another tokenizer_class in tokenizer_config.json (vocab.txt is a BertTokenizer's), or "
            + _NO_TOKENIZER,
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no padding token", hint="add pad_token to its settings")
    if getattr(tokenizer, "is_fast", False):
        _check_files(tokenizer, folder)
        # Else the first call would take them away, as other threads tokenize.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _check_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Transformers makes a BertTokenizer of a vocabulary and ``tokenizer_config.json``, whatever else the files say."""
    own, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    used = json.loads(tokenizer.backend_tokenizer.to_str())
    if not own.is_file():
        _check_case(tokenizer, used, settings)
        return
    stored = json.loads(type(tokenizer.backend_tokenizer).from_file(str(own)).to_str())  # its defaults filled in
    for part in ("normalizer", "pre_tokenizer"):
        if stored[part] != used[part]:
            there, here = (json.dumps(_shortened(value))[:300] for value in _unlike(stored[part], used[part]))
            berts = (used[part] or {}).get("type") == "BertNormalizer"
            same = f"make {settings.name} say the same (do_lower_case, strip_accents, tokenize_chinese_chars), or "
            raise ModelError(
                f"{own} says {part} {there}; by {settings.name}, which is what counts here, it is {here}",
                hint=f'{same if berts else ""}write "tokenizer_class": "PreTrainedTokenizerFast" into '
                f"{'it' if berts else settings.name}: then {own.name} is taken as it is",
            )


def _unlike(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values, or where both are objects of one type, what they do not share."""
    if not (isinstance(one, dict) and isinstance(other, dict) and one["type"] == other["type"]):
        return one, other
    names = [name for name in one if one[name] != other[name]]
    return {name: one[name] for name in names}, {name: other[name] for name in names}


def _shortened(value: Any) -> Any:
    """The same without most of a long string, such as a table in base64."""
    if isinstance(value, dict):
        return {name: _shortened(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shortened(part) for part in value]
    return f"{value[:20]}..." if isinstance(value, str) and len(value) > 40 else value


def _check_case(tokenizer: Tokenizer, used: dict[str, Any], settings: Path) -> None:
    """A vocabulary alone does not tell its case, and transformers lowercases in doubt."""
    if not (used["normalizer"] or {}).get("lowercase"):
        return
    told = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    # Markers and the like, [CLS] and <S>, are no words.
    lost = (word for word in tokenizer.get_vocab() if word != word.lower() and word.removeprefix("##").isalpha())
    if "do_lower_case" not in told and (word := next(lost, None)) is not None:
        raise ModelError(
            f"texts would be lowercased, as {settings} does not say do_lower_case, and the vocabulary has {word!r}",
            hint='write "do_lower_case": false (or true) into it, as the model was trained',
        )


def token_types(tokenizer: Tokenizer, texts: int) -> int:
    """How many token types mark the tokens of a single text or a pair (``texts`` 2): RoBERTas' know one alone."""
    return 1 + max(tokenizer(*["a"] * texts, return_token_type_ids=True)["token_type_ids"])


def form_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that are no text: the special ones, and the markers that it puts around texts."""
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer("", "")["input_ids"])


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, name: object = "the model") -> None:
    """Refuse a tokenizer with more tokens than a model, called ``name`` in the message, has embeddings.

    Raises:
        ModelError: it has.
    """
    if len(tokenizer) > vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, {name} only {vocab_size} embeddings",
            hint="take the tokenizer that the model was trained with",
        )


def check_same_tokens(tokenizer: Tokenizer, folder: Path, name: object) -> None:
    """Refuse a model, called ``name`` in the message, whose folder has a tokenizer of other ids.

    Raises:
        ModelError: it has, or cannot be read.
    """
    if not any((folder / file).is_file() for file in _FILES):
        return
    wanted, found = tokenizer.get_vocab(), load_tokenizer(folder).get_vocab()
    if other := [token for token, i in wanted.items() if found.get(token) != i]:
        raise ModelError(
            f"{name} has a tokenizer of its own: {len(other)} of {len(wanted)} tokens, {other[0]!r} among them, have "
            "other ids in it or none",
            hint="take a model that was trained with the same tokenizer",
        )


def least_length(tokenizer: Tokenizer, texts: int) -> int:
    """Tokens that a single text or a pair (``texts`` 2) needs at least: its markers, and one for each text."""
    return tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts


def encode(examples: Examples, tokenizer: Tokenizer, *, max_length: int) -> Encoded:
    """Tokenize all examples; too long ones lose tokens, pairs from the longer text first, and are counted.

    They lose them at the end, unless the tokenizer's ``truncation_side`` is "left".

    Args:
        examples: single texts or pairs.
        tokenizer: as `load_tokenizer` gives.
        max_length: tokens an example has at most, its markers included.

    Returns:
        The token ids with the examples' labels.

    Raises:
        ConfigError: ``max_length`` leaves no room for text.
    """
    least = least_length(tokenizer, len(examples.texts))
    if max_length < least:
        raise ConfigError(f"max_length {max_length} leaves no room for text", hint=f"use {least} or more")
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    truncated = 0
    fast = getattr(tokenizer, "is_fast", False)
    for part in chunks(examples.texts, _CHUNK):
        out = tokenizer(
            *(column[part] for column in examples.texts),
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=True,
            return_special_tokens_mask=not fast,
        )
        for row in [row for row, tokens in enumerate(out["input_ids"]) if len(tokens) > max_length]:
            kept = longest_first(_text_of_tokens(out, row, fast), max_length, left=tokenizer.truncation_side == "left")
            for name in ("input_ids", "token_type_ids"):
                out[name][row] = np.array(out[name][row])[kept].tolist()
            truncated += 1
        ids.append(_flat(out["input_ids"]))
        types.append(_flat(out["token_type_ids"]))
        lengths += map(len, out["input_ids"])
    return Encoded(
        input_ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        token_type_ids=np.concatenate([np.zeros(0, np.int32), *types]),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=examples.labels,
        pad_id=tokenizer.pad_token_id or 0,
        skipped=examples.skipped,
        truncated=truncated,
    )


def chunks(columns: Sequence[Sequence[str]], rows: int) -> Iterator[slice]:
    """Slices of columns of texts, of at most ``rows`` rows; of fewer where the texts are long, to spare memory."""
    start = characters = 0
    for row, texts in enumerate(zip(*columns, strict=True)):
        if row - start == rows or characters > _CHARACTERS:
            yield slice(start, row)
            start, characters = row, 0
        characters += sum(map(len, texts))
    if len(columns[0]) > start:
        yield slice(start, len(columns[0]))


def _text_of_tokens(out: Any, row: int, fast: bool) -> Int[np.ndarray, " tokens"]:
    if fast:
        return np.array([-1 if text is None else text for text in out.encodings[row].sequence_ids])
    marker = np.array(out["special_tokens_mask"][row]) == 1
    begins = ~marker & np.concatenate([[True], marker[:-1]])
    return np.where(marker, -1, np.cumsum(begins) - 1)


def _flat(rows: Sequence[Sequence[int]]) -> Int32[np.ndarray, " tokens"]:
    return np.fromiter(chain.from_iterable(rows), np.int32)
