"""The generated demo task: short reviews whose label needs word order, not only words."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlprune_jax.data.tasks import GLUE
from mlprune_jax.errors import ConfigError, DataError

DEMO = replace(GLUE["sst2"], name="demo")  # SST-2's layout: `load_examples(DEMO, folder, split)` reads it

_THINGS = ["film", "plot", "cast", "ending", "music", "dialogue", "script", "pacing", "humor", "camera", "story"]
_OWNERS = ["the", "its", "this", "their"]
_VERBS = ["is", "was", "seems", "felt", "looks"]
_DEGREES = ["very", "really", "quite", "rather", "so", "truly"]
_NEGATIONS = ["not", "never", "hardly"]
_GOOD = ["good", "great", "lovely", "clever", "funny", "warm", "fresh", "bright", "gripping", "superb", "witty"]
_BAD = ["bad", "awful", "dull", "clumsy", "boring", "cold", "stale", "bleak", "tedious", "dreadful", "harsh"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LINKS = ["but", "although", ","]
VOCABULARY = (*_SPECIAL, *sorted({*_THINGS, *_OWNERS, *_VERBS, *_DEGREES, *_NEGATIONS, *_GOOD, *_BAD, *_LINKS, "."}))


def write_demo(folder: str | os.PathLike[str], *, seed: int = 0, train_size: int = 4096, dev_size: int = 512) -> Path:
    """Write the demo task and its tokenizer; the same arguments write the same files.

    A clause praises or blames ("its plot was not very good" blames). Of two clauses that disagree, the one after
    "but", or the one without "although", decides. So the words alone do not give the label away.

    Args:
        folder: receives ``train.tsv`` and ``dev.tsv`` in SST-2's layout, ``vocab.txt`` and the tokenizer files;
            made where it does not exist.
        seed: of the sentences.
        train_size: sentences in train.
        dev_size: sentences in dev; none is in train.

    Returns:
        The folder.

    Raises:
        ConfigError: a size is not from 1 to a million.
        DataError: the folder cannot be written.
    """
    for name, size in (("train_size", train_size), ("dev_size", dev_size)):
        if not 1 <= size <= 1_000_000:
            raise ConfigError(f"{name} {size} is not from 1 to 1000000")
    folder = Path(folder)
    rows = _sentences(train_size + dev_size, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(folder / "train.tsv", rows[:train_size])
        _write_rows(folder / "dev.tsv", rows[train_size:])
        _write_tokenizer(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error}", hint="choose another folder") from None
    return folder


def _write_rows(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    lines = ["sentence\tlabel", *(f"{sentence}\t{label}" for sentence, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Different sentences with their labels, in random order."""
    rng = random.Random(seed)
    rows: dict[str, int] = {}
    while len(rows) < count:
        sentence, label = _sentence(rng)
        rows[sentence] = label
    return list(rows.items())


def _sentence(rng: random.Random) -> tuple[str, int]:
    label = int(rng.random() < 0.5)
    decides = _clause(rng, good=bool(label))
    if rng.random() < 0.25:
        return f"{decides} .", label
    concedes = _clause(rng, good=not label)
    if rng.random() < 0.5:
        return f"{concedes} but {decides} .", label
    if rng.random() < 0.5:
        return f"although {concedes} , {decides} .", label
    return f"{decides} although {concedes} .", label


def _clause(rng: random.Random, *, good: bool) -> str:
    negated = rng.random() < 0.3
    words = [_pick(rng, _OWNERS), _pick(rng, _THINGS), _pick(rng, _VERBS)]
    if negated:
        words.append(_pick(rng, _NEGATIONS))
    if rng.random() < 0.5:
        words.append(_pick(rng, _DEGREES))
    words.append(_pick(rng, _GOOD if good != negated else _BAD))
    return " ".join(words)


def _pick(rng: random.Random, words: Sequence[str]) -> str:
    # Of Random's methods only random() gives the same numbers in every version of Python.
    return words[int(rng.random() * len(words))]


def _write_tokenizer(folder: Path) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else a notice about missing torch
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8", newline="\n")
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}).save_pretrained(folder)
