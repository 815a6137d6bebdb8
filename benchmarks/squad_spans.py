"""What windows and answers lose of SQuAD's dev set before any model is involved.

    python -m benchmarks.squad_spans ../shared [--split dev]

Every question whose first answer lies in no window, or whose tokens give back another text, is printed with the
reason; then the scores of perfect logits, and how long reading, windows and answers take.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data.answers import Answers
from mlprune_jax.data.encode import load_tokenizer
from mlprune_jax.data.squad import SQUAD, load_squad
from mlprune_jax.data.windows import Windows, encode_windows
from mlprune_jax.training.answer_metrics import score_answers


def differing(windows: Windows) -> dict[str, dict[str, str]]:
    """Questions whose first answer does not come back from its tokens as it stands in the context."""
    asked, labels = windows.asked, windows.labels
    assert labels is not None
    found: dict[str, str] = {}
    for row in np.flatnonzero(labels.any(axis=1)):
        question = int(windows.question[row])
        ends = windows.offsets[row] + labels[row]
        found[asked.ids[question]] = asked.texts[1][question][windows.chars[ends[0], 0] : windows.chars[ends[1], 1]]
    gold = {name: texts[0] for name, texts in zip(asked.ids, asked.answers, strict=True) if texts}
    return {
        name: {"gold": text, "tokens": found[name], "reason": "it begins or ends inside a token"}
        if name in found
        else {"gold": text, "reason": "no window holds all of it"}
        for name, text in gold.items()
        if found.get(name) != text
    }


def perfect(windows: Windows, settings: TaskSettings) -> dict[str, str]:
    """Answers from logits that point at the labels and nowhere else."""
    labels = windows.labels
    assert labels is not None
    answers = Answers(windows, **settings.answering)
    for row, (first, last) in enumerate(labels.tolist()):
        logits = np.zeros((1, settings.max_length, 2), np.float32)
        logits[0, first, 0] = logits[0, last, 1] = 5.0
        answers.add([row], logits)
    return {name: answers.answer(question).text for question, name in enumerate(windows.asked.ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--split", default="dev")
    options = parser.parse_args()
    settings, times = TaskSettings(task="squad"), {}

    def timed(name: str, work: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = work(*args, **kwargs)
        times[name] = round(time.perf_counter() - started, 2)
        return result

    tokenizer = load_tokenizer(options.shared / "models" / "minilm-l6-h384")
    asked = timed("read", load_squad, SQUAD["squad"], options.shared / "data" / "squad", options.split)
    windows = timed("windows", encode_windows, asked, tokenizer, **settings.windowing)
    texts = timed("answers", perfect, windows, settings)
    lost = differing(windows)
    for name, why in lost.items():
        print(json.dumps({"id": name, **why}, ensure_ascii=False))
    scores = score_answers(asked, texts)
    print(json.dumps({"questions": len(asked), "windows": len(windows), "differing": len(lost), **scores, "s": times}))


if __name__ == "__main__":
    main()
