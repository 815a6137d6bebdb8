"""SQuAD 1.1 and 2.0: questions whose answers are spans of a paragraph, from their files or from the hub."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np

from mlprune_jax.data import hub
from mlprune_jax.data.tables import LEAVE_OUT, OnDamaged, list_folder, name_files, read_text
from mlprune_jax.data.tasks import Examples, Task
from mlprune_jax.errors import ConfigError, DataError
from mlprune_jax.files import home_path

_log = logging.getLogger(__name__)

USE_1_1 = "set task to 'squad' for 1.1"

NOWHERE = (-1, -1)  # the span of a question without an answer

_HUB_SPLITS = {"train": "train", "dev": "validation"}


@dataclass(frozen=True)
class SquadTask(Task):
    """One version of SQuAD.

    Attributes:
        version: as its files are named; in 2.0 a question may have no answer.
        hub_id: the data set on the hub.
    """

    version: Literal["1.1", "2.0"]
    hub_id: str

    @property
    def may_have_no_answer(self) -> bool:
        return self.version == "2.0"


def _squad(name: str, version: Literal["1.1", "2.0"], hub_id: str) -> SquadTask:
    columns, metrics = ("question", "context"), ("f1", "exact_match")
    return SquadTask(name, "span", (), columns, "answers", metrics, version, hub_id)


SQUAD: dict[str, SquadTask] = {
    task.name: task
    for task in (_squad("squad", "1.1", "rajpurkar/squad"), _squad("squad2", "2.0", "rajpurkar/squad_v2"))
}


@dataclass(frozen=True)
class Questions(Examples):
    """Questions on paragraphs; ``texts`` are the questions and their contexts.

    ``labels`` are the first and one past the last character of each question's first answer in its context, int32
    [questions, 2], `NOWHERE` without one; None where nothing is known of answers.

    Attributes:
        ids: of the questions, each its own.
        answers: texts of all right answers of each; none where the question has no answer.
    """

    ids: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]


class _Question(NamedTuple):
    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    span: tuple[int, int]


class _Item(NamedTuple):
    """A question as its file has it, unchecked, and where it stands."""

    place: str
    context: str
    fields: dict[str, Any]


def load_squad(
    task: SquadTask,
    source: str | os.PathLike[str],
    split: str,
    *,
    on_damaged: OnDamaged = "error",
    offline: bool = False,
) -> Questions:
    """Load one split of SQuAD, with its answers.

    Args:
        task: one of `SQUAD`.
        source: a folder with ``train-v1.1.json`` and ``dev-v1.1.json`` (``-v2.0``), "hub", or a data set id on the hub.
        split: "train" or "dev".
        on_damaged: what becomes of damaged questions: "error" or "skip"; see `read_squad`.
        offline: never touch the network; the cache still serves.

    Raises:
        ConfigError: there is no such split.
        DataError: nothing is found there, or the data is damaged or of the other version.
    """
    if split not in _HUB_SPLITS:
        raise ConfigError(f"task {task.name!r} has no split {split!r}", hint=f"use one of {', '.join(_HUB_SPLITS)}")
    name = f"{split}-v{task.version}.json"
    folder = home_path(source)
    if os.path.exists(folder):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: no {name} for task {task.name!r}; it holds {name_files(list_folder(folder))}",
                hint=f"put it there, or pass the folder that has {name}",
            )
        return read_squad(folder / name, task, on_damaged=on_damaged)
    if source == "hub" or (isinstance(source, str) and re.fullmatch(hub.DATASET_ID, source)):
        hub_id = task.hub_id if source == "hub" else str(source)
        path = hub.download_dataset(hub_id, None, _HUB_SPLITS[split], offline=offline)
        asked = _collect(_hub_items(path), task, f"hub:{hub_id}:{_HUB_SPLITS[split]}", on_damaged)
        if task.may_have_no_answer and all(asked.answers):  # the hub's rows do not say which version they are of
            raise DataError(f"{asked.source} has an answer to every question, so this is not SQuAD 2.0", hint=USE_1_1)
        return asked
    raise DataError(
        f"no folder {str(source)!r} for task {task.name!r}", hint=f"pass the folder that holds {name}, or 'hub'"
    )


def read_squad(path: Path, task: SquadTask | None, *, on_damaged: OnDamaged = "error") -> Questions:
    """Read a file in SQuAD's nested layout.

    A question is damaged where its id, question or context is no text, the context is blank, it has no answers though
    it should, has some though it should not, or an answer is not what stands at its ``answer_start``; and where its id
    was there before. Anything wrong above the questions is an error whatever ``on_damaged`` says.

    Args:
        path: the file.
        task: the version that the file must be of; None reads the questions alone, for predictions.
        on_damaged: "skip" leaves damaged questions out, logs how many and counts them; "error" stops at the first.

    Raises:
        DataError: the file is missing, damaged, of the other version, or has no questions.
    """
    return parse_squad(read_text(path), task, path, on_damaged=on_damaged)


def parse_squad(text: str, task: SquadTask | None, path: Path, *, on_damaged: OnDamaged = "error") -> Questions:
    """`read_squad` of a text that was read already; ``path`` is for messages."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}", hint="SQuAD's files are one JSON object each") from None
    return _collect(_file_items(content, path), task, str(path), on_damaged)


def _file_items(content: Any, path: Path) -> Iterator[_Item]:
    for i, article in enumerate(_member(content, "data", list, path, "the file")):
        for j, paragraph in enumerate(_member(article, "paragraphs", list, path, f"data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            context = _member(paragraph, "context", str, path, place)
            for k, fields in enumerate(_member(paragraph, "qas", list, path, place)):
                yield _Item(f"{place}.qas[{k}]", context, fields if isinstance(fields, dict) else {})


def _member(node: Any, key: str, kind: type, path: Path, place: str) -> Any:
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        raise DataError(
            f"{path}: {place} has no {'text' if kind is str else kind.__name__} {key!r}",
            hint="SQuAD's layout is data -> paragraphs -> context and qas",
        )
    return value


def _hub_items(path: Path) -> Iterator[_Item]:
    """Rows of the hub's layout: one question each, its answers as two lists side by side."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            row = json.loads(line)
            found = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            answers = [{"text": text, "answer_start": start} for text, start in found]
            fields = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
            yield _Item(f"line {number}", row["context"], fields)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, line {number}: not a question of SQuAD: {error!r}") from None


def _collect(items: Iterable[_Item], task: SquadTask | None, source: str, on_damaged: OnDamaged) -> Questions:
    """The questions that are whole, each id once."""
    found: dict[str, _Question] = {}
    skipped: list[str] = []
    for item in items:
        question = _check(item, task, source)
        if isinstance(question, _Question) and question.id in found:
            question = f"question {question.id!r}: its id was there before"
        if isinstance(question, _Question):
            found[question.id] = question
        elif on_damaged == "skip":
            skipped.append(question)
        else:
            raise DataError(f"{source}, {item.place}: {question}", hint=LEAVE_OUT)
    if skipped:
        total, first = len(found) + len(skipped), "; ".join(skipped[:3])
        _log.warning("%s: left out %d damaged questions of %d: %s", source, len(skipped), total, first)
    if not found:
        raise DataError(f"{source}: no questions, {len(skipped)} damaged ones", hint="pass a file with at least one")
    whole = list(found.values())
    return Questions(
        texts=([q.question for q in whole], [q.context for q in whole]),
        labels=None if task is None else np.array([q.span for q in whole], np.int32),
        source=source,
        ids=tuple(found),
        answers=tuple(q.answers for q in whole),
        skipped=len(skipped),
    )


def _check(item: _Item, task: SquadTask | None, source: str) -> _Question | str:
    """The question, or what is wrong with it."""
    fields = item.fields
    name = fields.get("id")
    if type(name) is int:  # as annotation tools give
        name = str(name)
    if not _is_text(name) or not name:
        return "the question has no id, or one that is no text and no whole number"
    if not _is_text(fields.get("question")) or not fields["question"].strip():
        return f"question {name!r}: its text is missing, blank or no valid text"
    if not _is_text(item.context) or not item.context.strip():
        return f"question {name!r}: its context is blank or no text"
    answers, span = (), NOWHERE
    if task is not None:
        _check_version(fields, task, f"{source}, {item.place}: question {name!r}")
        wrong = _wrong_answers(fields, item.context)
        if wrong:
            return f"question {name!r}: {wrong}"
        answers = tuple(answer["text"] for answer in fields["answers"])
        if answers:
            start = fields["answers"][0]["answer_start"]
            span = (start, start + len(answers[0]))
    return _Question(name, fields["question"], item.context, answers, span)


def _check_version(fields: dict[str, Any], task: SquadTask, place: str) -> None:
    """Never skipped: the whole file is another one than was asked for."""
    impossible = fields.get("is_impossible")
    if task.may_have_no_answer and not isinstance(impossible, bool):
        raise DataError(f"{place} has no is_impossible, so this is not SQuAD 2.0", hint=USE_1_1)
    if not task.may_have_no_answer and impossible:
        raise DataError(f"{place} is marked as impossible, as in SQuAD 2.0", hint="set task to 'squad2' for 2.0")


def _wrong_answers(fields: dict[str, Any], context: str) -> str | None:
    answers = fields.get("answers")
    if not isinstance(answers, list):
        return "it has no list of answers"
    if bool(answers) == bool(fields.get("is_impossible")):
        return "it is marked as impossible but has answers" if answers else "it has no answers"
    for answer in answers:
        text, start = (answer.get(key) if isinstance(answer, dict) else None for key in ("text", "answer_start"))
        if not _is_text(text) or not text.strip():
            return "an answer's text is missing or blank"
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            return f"answer {text[:80]!r} has answer_start {start!r}, wanted a place in the context"
        if context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            return f"answer {text[:80]!r} is not at answer_start {start}, where {there[:80]!r} stands"
    return None


def _is_text(value: Any) -> TypeGuard[str]:
    """A string that has a UTF-8 form; half a surrogate pair has none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
