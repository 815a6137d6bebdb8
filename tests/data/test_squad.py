"""SQuAD files: what is read, what is refused, and what is left out with a word."""

import copy
import json

import numpy as np
import pytest

from mlprune_jax.data import hub
from mlprune_jax.data.named import named_task
from mlprune_jax.data.squad import NOWHERE, SQUAD, load_squad, read_squad
from mlprune_jax.errors import ConfigError, DataError

CONTEXT = "The film was shot in Rome. Its cast is superb."


def answer(text, start=None, context=CONTEXT):
    return {"text": text, "answer_start": context.index(text) if start is None else start}


def file_of(*qas, context=CONTEXT, version="1.1"):
    paragraphs = [{"context": context, "qas": list(qas)}]
    return {"version": version, "data": [{"title": "Film", "paragraphs": paragraphs}]}


FIRST = {"id": "a", "question": "Where was it shot?", "answers": [answer("Rome"), answer("in Rome")]}
SECOND = {"id": "b", "question": "What is superb?", "answers": [answer("Its cast")]}
NONE = {"id": "c", "question": "Who paid?", "answers": [], "is_impossible": True}


def possible(question):
    return {**question, "is_impossible": False}


@pytest.fixture
def read(tmp_path):
    def call(content, task="squad", **options):
        path = tmp_path / "dev.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_squad(path, SQUAD[task] if task else None, **options)

    return call


def test_questions_with_all_their_answers(read):
    asked = read(file_of(FIRST, SECOND))
    assert asked.ids == ("a", "b")
    assert read(file_of({**FIRST, "id": 7})).ids == ("7",)
    assert asked.texts == ([FIRST["question"], SECOND["question"]], [CONTEXT, CONTEXT])
    assert asked.answers == (("Rome", "in Rome"), ("Its cast",))
    begin, end = asked.labels[0]
    assert (CONTEXT[begin:end], asked.labels.dtype, asked.skipped) == ("Rome", np.int32, 0)


def test_a_question_without_an_answer(read):
    asked = read(file_of(possible(FIRST), NONE), "squad2")
    assert asked.answers[1] == ()
    assert tuple(asked.labels[1]) == NOWHERE


def test_questions_alone_need_no_answers(read):
    asked = read(file_of({"id": "a", "question": "Where?"}, NONE), None)
    assert (asked.ids, asked.labels) == (("a", "c"), None)


DAMAGED = [
    ({**SECOND, "id": 3.5}, "the question has no id"),
    ({**SECOND, "id": True}, "the question has no id"),
    ({k: v for k, v in SECOND.items() if k != "id"}, "the question has no id"),
    ("no object", "the question has no id"),
    ({**SECOND, "question": " "}, "question 'b': its text is missing, blank or no valid text"),
    ({**SECOND, "question": "\ud800"}, "question 'b': its text is missing, blank or no valid text"),
    ({**SECOND, "id": "a"}, "question 'a': its id was there before"),
    ({k: v for k, v in SECOND.items() if k != "answers"}, "question 'b': it has no list of answers"),
    ({**SECOND, "answers": []}, "question 'b': it has no answers"),
    ({**SECOND, "answers": [{"text": "Its cast"}]}, "question 'b': answer 'Its cast' has answer_start None"),
    ({**SECOND, "answers": [answer("Its cast", True)]}, "has answer_start True"),
    ({**SECOND, "answers": [answer("Its cast", -20)]}, "has answer_start -20"),
    ({**SECOND, "answers": [answer("", 0)]}, "question 'b': an answer's text is missing or blank"),
    ({**SECOND, "answers": ["Its cast"]}, "question 'b': an answer's text is missing or blank"),
    (
        {**SECOND, "answers": [answer("Its cast"), answer("Its cast", 3)]},
        "question 'b': answer 'Its cast' is not at answer_start 3, where ' film wa' stands",
    ),
]


@pytest.mark.parametrize(("damaged", "told"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_question_stops_or_is_left_out_and_counted(read, caplog, damaged, told):
    content = file_of(FIRST, damaged)
    with pytest.raises(DataError) as refused:
        read(content)
    assert told in str(refused.value)
    assert "data[0].paragraphs[0].qas[1]" in str(refused.value)
    asked = read(content, on_damaged="skip")
    assert (asked.ids, asked.skipped) == (("a",), 1)
    assert "left out 1 damaged questions of 2: " in caplog.text
    assert told in caplog.text


@pytest.mark.parametrize("context", ["", " \n"])
def test_a_blank_context_names_its_question(read, context):
    with pytest.raises(DataError, match="question 'a': its context is blank"):
        read(file_of({**FIRST, "answers": []}, context=context))


def test_the_other_version_is_never_skipped(read):
    for content, task, told in (
        (file_of(FIRST), "squad2", "question 'a' has no is_impossible, so this is not SQuAD 2.0"),
        (file_of(possible(FIRST), NONE), "squad", "question 'c' is marked as impossible, as in SQuAD 2.0"),
    ):
        with pytest.raises(DataError, match=told):
            read(content, task, on_damaged="skip")


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({**possible(NONE), "answers": []}, "'c': it has no answers"),
        ({**SECOND, "is_impossible": True}, "'b': it is marked as impossible but has answers"),
    ],
)
def test_contradictions_of_version_2(read, question, told):
    with pytest.raises(DataError, match=told):
        read(file_of(question), "squad2")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (("data",), "the file has no list 'data'"),
        (("data", 0, "paragraphs"), r"data\[0\] has no list 'paragraphs'"),
        (("data", 0, "paragraphs", 0, "context"), r"data\[0\].paragraphs\[0\] has no text 'context'"),
        (("data", 0, "paragraphs", 0, "qas"), r"data\[0\].paragraphs\[0\] has no list 'qas'"),
    ],
)
def test_missing_structure(read, path, told):
    content = copy.deepcopy(file_of(FIRST))
    node = content
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    with pytest.raises(DataError, match=told):
        read(content, on_damaged="skip")


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "has no list 'data'"), ("", "empty")],
    ids=["cut", "deep", "list", "empty"],
)
def test_no_squad_file(read, content, told):
    with pytest.raises(DataError, match=told):
        read(content)


def test_nothing_left(read):
    with pytest.raises(DataError, match="no questions, 1 damaged ones"):
        read(file_of({**FIRST, "id": ""}), on_damaged="skip")
    with pytest.raises(DataError, match="no questions"):
        read(file_of())


def test_splits_of_a_folder(tmp_path):
    (tmp_path / "train-v1.1.json").write_text(json.dumps(file_of(FIRST)))
    assert len(load_squad(SQUAD["squad"], tmp_path, "train")) == 1
    with pytest.raises(DataError, match=r"no dev-v1.1.json for task 'squad'; it holds train-v1.1.json"):
        load_squad(SQUAD["squad"], tmp_path, "dev")
    with pytest.raises(DataError, match=r"no train-v2.0.json"):
        load_squad(SQUAD["squad2"], tmp_path, "train")
    with pytest.raises(ConfigError, match="no split 'test'"):
        load_squad(SQUAD["squad"], tmp_path, "test")
    with pytest.raises(DataError, match="no folder 'nowhere'"):
        load_squad(SQUAD["squad"], "nowhere", "dev")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub data set in the cache, where no network is needed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(hub_id, *rows):
        path = hub.cache_folder() / "datasets" / hub_id.replace("/", "--") / "default" / "validation.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def test_the_hubs_rows(cached):
    start = CONTEXT.index("Rome")
    row = {"id": "a", "context": CONTEXT, "question": "Where?", "answers": {"text": ["Rome"], "answer_start": [start]}}
    empty = {**row, "id": "b", "answers": {"text": [], "answer_start": []}}
    cached("rajpurkar/squad", row)
    cached("rajpurkar/squad_v2", row, empty)
    cached("my/squad", {**row, "answers": None})
    asked = load_squad(SQUAD["squad"], "hub", "dev")
    assert (asked.answers, asked.labels.tolist()) == ((("Rome",),), [[start, start + 4]])
    assert load_squad(SQUAD["squad2"], "hub", "dev").answers == (("Rome",), ())
    with pytest.raises(DataError, match="line 1: not a question of SQuAD"):
        load_squad(SQUAD["squad"], "my/squad", "dev")
    with pytest.raises(DataError, match=r"an answer to every question, so this is not SQuAD 2\.0"):
        load_squad(SQUAD["squad2"], "rajpurkar/squad", "dev")
    with pytest.raises(DataError, match="network is off"):
        load_squad(SQUAD["squad"], "hub", "train")


def test_tasks_by_name():
    assert named_task("SQuAD") is SQUAD["squad"]
    assert named_task("squad2").metrics == ("f1", "exact_match")
    assert named_task("sst2").name == "sst2"
    with pytest.raises(ConfigError, match="did you mean 'squad2'"):
        named_task("squad_v2")
    with pytest.raises(ConfigError, match="squad, squad2, demo, custom"):
        named_task("?")
