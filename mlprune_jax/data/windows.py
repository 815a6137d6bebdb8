"""Questions to token ids: a context that is too long is read through several windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from mlprune_jax.data.encode import Encoded, Tokenizer, chunks
from mlprune_jax.data.squad import NOWHERE, Questions
from mlprune_jax.errors import ConfigError, ModelError

_CHUNK = 512  # questions at once: their windows are lists of tuples for a while

Spans = Int32[np.ndarray, "_ 2"]


@dataclass(frozen=True)
class Windows(Encoded):
    """A split of questions as windows: an example is a question with a piece of its context.

    ``labels`` are the first and last token of the question's first answer, counted from the window's start, int32
    [examples, 2]; (0, 0), the marker at the start, where the window does not hold all of it.

    Attributes:
        question: which of ``asked`` each window belongs to; windows of one question follow each other.
        chars: first and one past the last character of each token in its context; `NOWHERE` outside of it.
        asked: the questions.
    """

    question: Int32[np.ndarray, " examples"]
    chars: Int32[np.ndarray, "tokens 2"]
    asked: Questions

    @property
    def out_of_reach(self) -> int:
        """Questions with an answer of which no window holds all, and which therefore train as having none."""
        if self.labels is None or self.asked.labels is None:
            return 0
        held = np.bincount(self.question, self.labels.any(axis=1), minlength=len(self.asked))
        return int(((held == 0) & (self.asked.labels[:, 0] >= 0)).sum())


def encode_windows(
    asked: Questions, tokenizer: Tokenizer, *, max_length: int, doc_stride: int, max_query_length: int
) -> Windows:
    """Tokenize questions with their contexts into windows.

    Args:
        asked: questions and contexts, with or without answers.
        tokenizer: as `load_tokenizer` gives; it must know where in the text its tokens stand.
        max_length: tokens of a window at most, its markers included.
        doc_stride: tokens that two windows in a row share.
        max_query_length: tokens of a question at most; longer ones lose their end.

    Raises:
        ConfigError: ``max_length`` leaves no room for more of a context than two windows share.
        ModelError: a tokenizer that does not know where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("the tokenizer does not know where its tokens stand", hint="save it with a tokenizer.json")
    least = least_window(tokenizer, doc_stride=doc_stride, max_query_length=max_query_length)
    if max_length < least:
        room = max(max_length - least + doc_stride + 1, 0)
        raise ConfigError(
            f"max_length {max_length} leaves {room} tokens of a context beside a question of "
            f"{max_query_length}, and two windows share doc_stride {doc_stride} of them",
            hint="raise max_length, or lower doc_stride or max_query_length",
        )
    questions = [
        question
        for part in chunks(asked.texts[:1], _CHUNK)
        for question in _shortened(asked.texts[0][part], tokenizer, max_query_length)
    ]
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    chars: list[np.ndarray] = []
    owners: list[int] = []
    labels: list[tuple[int, int]] = []
    for owner, pair in enumerate(_tokenized(questions, asked.texts[1], tokenizer)):
        pair_ids, pair_types = np.array(pair.ids, np.int32), np.array(pair.type_ids, np.int32)
        pair_chars = _context_chars(pair)
        answer = None if asked.labels is None else find_tokens(pair_chars, *asked.labels[owner].tolist())
        for kept in _cut(pair, max_length, doc_stride):
            ids.append(pair_ids[kept])
            types.append(pair_types[kept])
            chars.append(pair_chars[kept])
            owners.append(owner)
            if answer is not None:
                labels.append(_place(answer, kept))
    return Windows(
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(types),
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        labels=None if asked.labels is None else np.array(labels, np.int32),
        pad_id=tokenizer.pad_token_id or 0,
        question=np.array(owners, np.int32),
        chars=np.concatenate(chars),
        asked=asked,
        skipped=asked.skipped,
        truncated=sum(map(str.__ne__, questions, asked.texts[0])),
    )


def least_window(tokenizer: Tokenizer, *, doc_stride: int, max_query_length: int) -> int:
    """Tokens that windows need at least: markers, a question, and more of its context than two windows share."""
    return max_query_length + tokenizer.num_special_tokens_to_add(pair=True) + doc_stride + 1


def _tokenized(questions: list[str], contexts: list[str], tokenizer: Tokenizer) -> Iterator[Any]:
    """Each question with the whole of its context."""
    for part in chunks((questions, contexts), _CHUNK):
        yield from tokenizer(questions[part], contexts[part], padding=False, truncation=False).encodings


def _cut(pair: Any, max_length: int, doc_stride: int) -> Iterator[np.ndarray]:
    """Which tokens each window of a question with its context keeps.

    Not left to the tokenizer: of a long context tokenizers 0.23.1 and 0.23.2 give the first windows alone.
    """
    places = np.arange(len(pair))
    context = places[[sequence == 1 for sequence in pair.sequence_ids]]
    room = max_length - (len(places) - len(context))
    for start in range(0, max(len(context) - doc_stride, 1), room - doc_stride):
        yield np.delete(places, np.concatenate([context[:start], context[start + room :]]))


def _shortened(questions: Sequence[str], tokenizer: Tokenizer, most: int) -> list[str]:
    """Questions cut behind their last token that counts; of a pair, the tokenizer itself cuts the context alone."""
    out = tokenizer(list(questions), add_special_tokens=False, padding=False, truncation=False)
    return [
        text if len(encoding) <= most else text[: _end(encoding.offsets, most)]
        for text, encoding in zip(questions, out.encodings, strict=True)
    ]


def _end(offsets: Sequence[tuple[int, int]], most: int) -> int:
    """Where in a text at most so many of its tokens end, of which none shares a character with those that follow.

    A character may be several tokens (a Hangul syllable whose letters stand alone), all of it or none.
    """
    while most and offsets[most][0] < offsets[most - 1][1]:
        most -= 1
    return offsets[most - 1][1] if most else 0


def _context_chars(pair: Any) -> Spans:
    chars = np.fromiter(chain.from_iterable(pair.offsets), np.int32, 2 * len(pair)).reshape(-1, 2)
    chars[[sequence != 1 for sequence in pair.sequence_ids]] = NOWHERE
    return chars


def find_tokens(chars: Spans, begin: int, end: int) -> Int64[np.ndarray, " touched"]:
    """The tokens that hold some of the characters ``begin`` to ``end``; none where these are `NOWHERE`.

    Blanks, and what a tokenizer drops (accents that stand alone, characters without width), lie in no token.
    """
    return np.flatnonzero((chars[:, 0] < end) & (chars[:, 1] > begin))


def _place(answer: Int64[np.ndarray, " touched"], kept: np.ndarray) -> tuple[int, int]:
    """First and last of an answer's tokens in the window of those ``kept``; (0, 0) where it lacks some."""
    held = np.flatnonzero(np.isin(kept, answer))
    return (int(held[0]), int(held[-1])) if 0 < len(answer) == len(held) else (0, 0)
