"""GLUE's tasks: the published layout is read to the last row, and nothing else passes for it."""

from dataclasses import replace

import numpy as np
import pytest

from mlprune_jax.data import hub
from mlprune_jax.data.glue import load_examples
from mlprune_jax.data.named import named_task
from mlprune_jax.data.tasks import GLUE, Examples, Task
from mlprune_jax.errors import ConfigError, DataError


def ids(examples: Examples) -> list[int]:
    assert examples.labels is not None
    return examples.labels.tolist()


SIZES = {
    ("cola", "train"): 8551,
    ("cola", "dev"): 1043,
    ("sst2", "train"): 67349,
    ("sst2", "dev"): 872,
    ("mrpc", "train"): 3668,
    ("mrpc", "dev"): 408,
    ("stsb", "train"): 5749,
    ("stsb", "dev"): 1500,
    ("qqp", "train"): 15592,
    ("qqp", "dev"): 2000,
    ("mnli", "train"): 107667,
    ("mnli", "dev"): 4900,
    ("rte", "train"): 2490,
    ("rte", "dev"): 277,
}


@pytest.mark.parametrize(("name", "split"), SIZES)
def test_every_row_of_the_real_files(shared, name, split):
    task = GLUE[name]
    examples = load_examples(task, shared / "data" / "glue", split)
    assert len(examples) == SIZES[name, split]
    assert len(examples.texts) == len(task.text_columns)
    assert examples.labels is not None
    if task.kind == "regression":
        assert examples.labels.dtype == np.float32
        assert 0 <= examples.labels.min() < examples.labels.max() <= 5
    else:
        assert examples.labels.dtype == np.int32
        assert set(examples.labels.tolist()) == set(range(len(task.labels)))


def test_first_rows_of_the_real_files(shared):
    folder = shared / "data" / "glue"
    assert ids(load_examples(GLUE["rte"], folder / "RTE", "dev"))[:2] == [1, 0]
    mrpc = load_examples(GLUE["mrpc"], folder, "dev")
    assert mrpc.texts[1][0].startswith('" The foodservice pie business')


@pytest.fixture
def folder(tmp_path):
    """GLUE's folder with a small RTE and CoLA in it, spelled in other ways."""
    rte, cola = tmp_path / "glue" / "rte", tmp_path / "glue" / "Co_LA"
    rte.mkdir(parents=True)
    cola.mkdir()
    (rte / "train.tsv").write_text('\ufeffindex\tsentence1\tsentence2\tlabel\r\n0\tA "b\tNA\tnot_entailment\r\n')
    (rte / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tA\tB\n")
    (cola / "dev.tsv").write_text("gj04\t0\t*\tsentence it is\n")
    (cola / "test.tsv").write_text("index\tsentence\n0\tSo it is.\n")
    return tmp_path / "glue"


@pytest.mark.parametrize("inside", ["", "rte"])
def test_the_folder_itself_or_the_one_around_it(folder, inside):
    examples = load_examples(GLUE["rte"], str(folder / inside), "train")
    assert examples.texts == (['A "b'], ["NA"])
    assert ids(examples) == [1]
    assert examples.source == str(folder / "rte" / "train.tsv")


def test_a_test_split_has_no_labels(folder):
    assert load_examples(GLUE["rte"], folder, "test").labels is None
    assert load_examples(GLUE["cola"], folder, "test").texts == (["So it is."],)
    assert load_examples(GLUE["cola"], folder, "dev").texts == (["sentence it is"],)


def test_labels_of_another_task_are_refused(folder):
    with pytest.raises(
        DataError, match=r"train.tsv, line 2: column 'label' holds 'not_entailment', wanted one of 0, 1"
    ):
        load_examples(GLUE["wnli"], folder / "rte", "train")
    file = folder / "STS-B"
    file.mkdir()
    for bad in ("nan", "inf", "1e39", "high", "", "5.1", "-1", "1_0"):
        (file / "dev.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t1.5\na\tb\t{bad}\n")
        with pytest.raises(DataError, match=r"line 3: .* wanted a number from 0 to 5"):
            load_examples(GLUE["stsb"], folder, "dev")


def test_what_is_missing_is_named(folder):
    with pytest.raises(DataError, match=r"no dev.tsv for task 'rte'; it holds test.tsv, train.tsv"):
        load_examples(GLUE["rte"], folder, "dev")
    with pytest.raises(DataError, match=r"no train.tsv for task 'qnli'; it holds Co_LA, rte"):
        load_examples(GLUE["qnli"], folder, "train")
    with pytest.raises(DataError, match="cannot be read as a folder"):
        load_examples(GLUE["rte"], folder / "rte" / "train.tsv", "train")
    with pytest.raises(ConfigError, match="no split 'validation'"):
        load_examples(GLUE["rte"], folder, "validation")


@pytest.mark.parametrize(
    "source", ["./glue", "/glue", "~/none/glue", "~nobody/x", "x" * 300, "nul\0", "a/b/c", "..", "none", "", "nyu-mll/"]
)
def test_what_is_no_hub_id_never_goes_to_the_hub(monkeypatch, tmp_path, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError) as caught:
        load_examples(GLUE["rte"], source, "train")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "split", "source", "asked", "row"),
    [
        ("mnli", "dev", "hub", ("nyu-mll/glue", "mnli", "validation_matched"), '"premise": "a", "hypothesis": "b"'),
        ("rte", "train", "org/glue", ("org/glue", "rte", "train"), '"sentence1": "a", "sentence2": "b"'),
        ("qnli", "dev", "org/qnli", ("org/qnli", None, "validation"), '"question": "a", "sentence": "b"'),
    ],
)
def test_the_hub_is_asked_in_its_own_words(monkeypatch, tmp_path, name, split, source, asked, row):
    file = tmp_path / "x.jsonl"
    file.write_text(f'{{{row}, "label": "entailment"}}\n')
    calls = []

    def download(*arguments, offline):
        calls.append((arguments, offline))
        return file

    monkeypatch.setattr(hub, "download_dataset", download)
    examples = load_examples(GLUE[name], source, split, offline=True)
    assert calls == [(asked, True)]
    assert examples.texts == (["a"], ["b"])
    assert ids(examples) == [0]
    assert examples.source.startswith("hub:")


def test_unlabelled_rows_of_the_hub_and_its_own_label_names(monkeypatch, tmp_path):
    file = tmp_path / "x.jsonl"
    monkeypatch.setattr(hub, "download_dataset", lambda *_, **__: file)
    file.write_text('{"sentence": "a", "idx": 0}\n')
    assert load_examples(GLUE["sst2"], "hub", "test").labels is None
    file.write_text('{"sentence": "a", "label": "positive"}\n')
    assert ids(load_examples(GLUE["sst2"], "hub", "dev")) == [1]
    file.write_text('{"sentence1": "a", "sentence2": "b", "label": -1.0}\n')
    assert load_examples(GLUE["stsb"], "hub", "test").labels is None
    with pytest.raises(DataError, match=r"holds '-1.0', wanted a number from 0 to 5"):
        load_examples(GLUE["stsb"], "hub", "dev")
    # Ids without names could be in any order, so they are not guessed at.
    file.write_text('{"sentence": "a", "label": 1}\n')
    with pytest.raises(DataError, match="wanted one of negative, positive"):
        load_examples(GLUE["sst2"], "org/sst2", "dev")


def test_tasks_by_name():
    assert list(GLUE) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert named_task("SST-2") is GLUE["sst2"]
    assert GLUE["mnli"].labels == ("entailment", "neutral", "contradiction")
    with pytest.raises(ConfigError, match="did you mean 'mnli'"):
        named_task("mnlli")
    for task in GLUE.values():
        assert len(task.hub_labels) == len(task.labels)
        assert len(task.hub_text_columns) == len(task.text_columns)


@pytest.mark.parametrize(
    "change",
    [
        dict(text_columns=()),
        dict(text_columns=("a", "a")),
        dict(text_columns=("label",)),
        dict(labels=("0",)),
        dict(labels=("0", "0")),
        dict(kind="regression"),
        dict(metrics=()),
    ],
)
def test_a_task_that_does_not_fit_together(change):
    good = Task("x", "classification", ("0", "1"), ("a",), label_column="label", metrics=("f1",))
    with pytest.raises(ConfigError):
        replace(good, **change)


def test_examples_of_different_lengths():
    with pytest.raises(DataError, match="different lengths"):
        Examples((["a"], ["b", "c"]), None, "x")


def test_texts_change_places_where_the_task_asks_whether_they_say_the_same():
    assert {name for name, task in GLUE.items() if task.symmetric} == {"mrpc", "stsb", "qqp"}


def test_every_split_of_mnli_is_its_own_file(tmp_path):
    splits = {
        "train": "train.tsv",
        "dev": "dev_matched.tsv",
        "dev_mismatched": "dev_mismatched.tsv",
        "test": "test_matched.tsv",
        "test_mismatched": "test_mismatched.tsv",
    }
    for split, name in splits.items():
        (tmp_path / name).write_text(f"sentence1\tsentence2\tgold_label\n{split}\tb\tneutral\n")
    for split, name in splits.items():
        examples = load_examples(GLUE["mnli"], tmp_path, split)
        assert (examples.texts, examples.source) == (([split], ["b"]), str(tmp_path / name))
    there = {split: GLUE["mnli"].split_names(split)[1] for split in splits}
    assert there == {
        "train": "train",
        "dev": "validation_matched",
        "dev_mismatched": "validation_mismatched",
        "test": "test_matched",
        "test_mismatched": "test_mismatched",
    }


def test_classes_of_the_hub_and_metrics_as_glue_has_them():
    """The hub's names in the order of the files' ids."""
    assert {name: task.hub_labels for name, task in GLUE.items()} == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "stsb": (),
        "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("not_entailment", "entailment"),
    }
    assert {name: task.metrics for name, task in GLUE.items()} == {
        "cola": ("mcc",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }
