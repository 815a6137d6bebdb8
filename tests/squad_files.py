"""Small SQuAD files in the words of the generated demo: which word stands behind a thing's verb."""

import json
import random
from pathlib import Path
from typing import Any

THINGS, WORDS = ["film", "plot", "cast", "music", "script"], ["good", "dull", "witty", "cold", "superb", "harsh"]


def write_questions(path: Path, count: int, *, version: str = "1.1", seed: int = 0) -> Path:
    """One paragraph of three clauses for each question; in 2.0 every third asks for what is not there."""
    rng = random.Random(seed)
    paragraphs = [_paragraph(rng, f"{path.stem}-{i}", version, absent=i % 3 == 2) for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": version, "data": [{"title": "Reviews", "paragraphs": paragraphs}]}))
    return path


def _paragraph(rng: random.Random, name: str, version: str, *, absent: bool) -> dict[str, Any]:
    things = rng.sample(THINGS, 4)
    clauses = [
        (thing, f"its {thing} was {word} .", word) for thing, word in zip(things[:3], rng.sample(WORDS, 3), strict=True)
    ]
    context = "  ".join(clause for _, clause, _ in clauses)
    thing, _, word = rng.choice(clauses)
    asked: dict[str, Any] = {"id": name, "question": f"the {thing}"}
    start = context.index(f"its {thing}") + len(f"its {thing} was ")
    asked["answers"] = [{"text": word, "answer_start": start}] * 2
    if version == "2.0":
        asked["is_impossible"] = absent
        if absent:
            asked |= {"question": f"the {things[3]}", "answers": [], "plausible_answers": asked["answers"][:1]}
    return {"context": context, "qas": [asked]}
