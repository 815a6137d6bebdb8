"""SQuAD through the whole pipeline: trained, pruned, distilled, evaluated, resumed, and answered from its folder."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from mlprune_jax import pipeline
from mlprune_jax.cli import app
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.data.squad import SQUAD, read_squad
from mlprune_jax.inference.service import load
from mlprune_jax.inference.stored import known_task
from mlprune_jax.models.pretrained import load_pretrained
from mlprune_jax.pipeline.evaluation import evaluate_folder, inspect_folder
from mlprune_jax.training.answer_metrics import score_answers
from tests.squad_files import write_questions

SPAN = {"max_length": 16, "doc_stride": 3, "max_query_length": 4, "max_answer_length": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    for version in ("1.1", "2.0"):
        write_questions(folder / f"train-v{version}.json", 64, version=version)
        write_questions(folder / f"dev-v{version}.json", 20, version=version, seed=1)
    return folder


def settings(tiny, data, task):
    """Each length compiles every step anew, so only one of the two tasks has two of them."""
    buckets = {"squad": [12, 16], "squad2": [16]}[task]
    changed = {**SPAN, "length_buckets": buckets, "task": task, "data": str(data)}
    return RunConfig.model_validate({**tiny.settings, **changed})


@pytest.fixture(scope="module", params=["squad", "squad2"])
def finished(request, tiny, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    pipeline.run(settings(tiny, data, request.param), folder, quiet=True)
    return folder


def asked(data, folder):
    task = SQUAD[known_task(folder / "final").task]
    return read_squad(data / f"dev-v{task.version}.json", task), task.may_have_no_answer


def test_a_run_is_complete(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["metric"] == "f1"
    assert {"f1", "exact_match", "loss", "examples", "windows", "unanswered"} <= summary["final"].keys()
    assert summary["final"]["examples"] == 20 < summary["final"]["windows"]
    assert summary["final"]["unanswered"] == 0
    assert list(summary["stages"]) == ["dense", "heads_rows", "blocks"]
    assert summary["final"]["density"]["encoder"] <= 0.4
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(entry["loss"]) and entry["skipped"] == 0 for entry in entries)
    assert {"task", "logit", "hidden"} <= entries[-1].keys()


def test_eval_agrees_with_the_run(finished):
    final = json.loads((finished / "summary.json").read_text())["final"]
    told = evaluate_folder(finished)
    assert {name: told[name] for name in ("f1", "exact_match", "loss")} == {
        name: final[name] for name in ("f1", "exact_match", "loss")
    }
    assert inspect_folder(finished)["metric"] == "f1"


def test_eval_compares_answers(finished):
    told = evaluate_folder(finished, against=finished / "stages" / "dense")
    against = told["against"]
    for name in ("f1", "exact_match"):
        assert against["difference"][name] == pytest.approx(told[name] - against[name])
    assert (against["gained"] - against["lost"]) / 20 == pytest.approx(against["difference"]["exact_match"])


def test_eval_of_another_split(finished):
    assert evaluate_folder(finished, split="train", batch_size=7)["examples"] == 64


def test_predictions_score_what_eval_says(finished, data):
    questions, may_have_no_answer = asked(data, finished)
    answers = load(finished).compile(batch_sizes=[4])(list(zip(*questions.texts, strict=True)))
    texts = dict(zip(questions.ids, (answer.text for answer in answers), strict=True))
    scores = score_answers(questions, texts, may_have_no_answer=may_have_no_answer)
    told = evaluate_folder(finished)
    assert {name: told[name] for name in scores} == scores
    for answer, context in zip(answers, questions.texts[1], strict=True):
        if answer.start is not None:
            assert context[answer.start : answer.start + len(answer.text)] == answer.text != ""
        assert 0 < answer.score <= 1


def test_predict_takes_squad_files_and_tables(finished, data, tmp_path):
    questions, _ = asked(data, finished)
    source = data / f"dev-v{SQUAD[known_task(finished / 'final').task].version}.json"
    wanted = load(finished).compile(batch_sizes=[4])(list(zip(*questions.texts, strict=True)))
    table = tmp_path / "in.jsonl"
    rows = zip(questions.ids, *questions.texts, strict=True)
    table.write_text("".join(json.dumps({"id": i, "question": q, "context": c}) + "\n" for i, q, c in rows))
    bare = tmp_path / "in.tsv"
    lines = ["context\tquestion", *("\t".join(row[::-1]) for row in zip(*questions.texts, strict=True))]
    bare.write_text("\n".join(lines) + "\n")
    for path, marks in ((source, {"id"}), (table, {"id", "line"}), (bare, {"line"})):
        told = CliRunner().invoke(app, ["predict", str(finished), "-i", str(path), "--batch-size", "4", "-q"])
        assert told.exit_code == 0, told.output
        records = [json.loads(line) for line in told.stdout.splitlines()]
        assert [(r["answer"], r["answer_start"]) for r in records] == [(a.text, a.start) for a in wanted]
        assert all(r.keys() == marks | {"answer", "answer_start", "score"} for r in records)
        if "id" in marks:
            assert [r["id"] for r in records] == list(questions.ids)
    piped = CliRunner().invoke(app, ["predict", str(finished), "-i", "-", "--format", "json"], input=source.read_text())
    assert len(piped.stdout.splitlines()) == len(questions)
    refused = CliRunner().invoke(app, ["predict", str(finished), "-i", str(source), "--keep", "id"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "is no table: it has no columns to keep" in refused.stderr


def test_predict_names_what_is_damaged(finished, tmp_path):
    path = tmp_path / "in.json"
    qas = [{"id": "a", "question": "the film"}, {"id": "b"}]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "its film was good .", "qas": qas}]}]}))
    refused = CliRunner().invoke(app, ["predict", str(finished), "-i", str(path)])
    assert refused.exit_code == 3
    assert "question 'b'" in refused.stderr
    told = CliRunner().invoke(app, ["predict", str(finished), "-i", str(path), "--skip-damaged", "-q"])
    assert [json.loads(line)["id"] for line in told.stdout.splitlines()] == ["a"]
    path.write_bytes(b"\xff\xfe")
    refused = CliRunner().invoke(app, ["predict", str(finished), "-i", str(path)])
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "line 1: not UTF-8" in refused.stderr


def test_predict_names_a_row_without_a_context(finished, tmp_path):
    path = tmp_path / "in.tsv"
    path.write_text("question\tcontext\nthe film\t \n")
    refused = CliRunner().invoke(app, ["predict", str(finished), "-i", str(path)])
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "line 2: column 'context' is blank" in refused.stderr


def test_damaged_questions_are_told_with_the_scores(finished, data, tmp_path):
    name = f"dev-v{SQUAD[known_task(finished / 'final').task].version}.json"
    content = json.loads((data / name).read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / name).write_text(json.dumps(content))
    refused = CliRunner().invoke(app, ["eval", str(finished), "--data", str(tmp_path)])
    assert refused.exit_code == 3
    assert "is not at answer_start" in refused.stderr
    told = evaluate_folder(finished, data=str(tmp_path), skip_damaged=True)
    assert (told["skipped"], told["examples"]) == (1, 19)


def test_a_finished_stage_is_not_trained_again(finished, tmp_path, monkeypatch):
    copied = shutil.copytree(finished, tmp_path / "copy")
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "stages" / "blocks")
    pipeline.resume(copied, quiet=True)
    weights = [load_pretrained(folder / "final", num_labels=2, kind="span").params for folder in (finished, copied)]
    assert all(np.array_equal(a, b) for a, b in zip(*([*map(np.asarray, leaves(w))] for w in weights), strict=True))


def leaves(tree):
    for node in tree.values():
        yield from leaves(node) if isinstance(node, dict) else [node]


def test_bench_times_a_span_model(finished, tmp_path):
    told = CliRunner().invoke(
        app,
        [
            "bench",
            str(finished),
            "--batch",
            "2",
            "--seq",
            "16",
            "--rounds",
            "1",
            "--json",
            "-q",
            "-o",
            str(tmp_path / "b"),
        ],
    )
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["rows"]) >= 2


def test_wrong_data_is_refused_before_training(tiny, data, tmp_path):
    only = shutil.copytree(data, tmp_path / "data")
    (only / "dev-v1.1.json").unlink()
    told = pipeline_refusal(tiny, only, "squad", tmp_path)
    assert "no dev-v1.1.json for task 'squad'" in told
    shutil.copy(data / "dev-v2.0.json", only / "dev-v1.1.json")
    assert "is marked as impossible, as in SQuAD 2.0" in pipeline_refusal(tiny, only, "squad", tmp_path)


def pipeline_refusal(tiny, data, task, tmp_path):
    with pytest.raises(Exception) as refused:  # noqa: PT011
        pipeline.run(settings(tiny, data, task), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    return str(refused.value)


@pytest.mark.slow
def test_a_tiny_model_learns_its_training_set(tiny, data, tmp_path):
    """Labels, windows, losses and answers agree on where an answer stands: one of three words by guessing."""
    config = settings(tiny, data, "squad").model_dump()
    config["dense"] |= {"epochs": 150, "batch_size": 64, "learning_rate": 5e-3}
    config["prune"] = {"heads_rows": {"enabled": False}, "blocks": {"enabled": False}}
    pipeline.run(RunConfig.model_validate(config), tmp_path / "run", quiet=True)
    assert evaluate_folder(tmp_path / "run", split="train")["exact_match"] > 0.6
