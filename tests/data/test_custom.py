"""The user's own files: columns by name, labels from train, the same ones everywhere."""

import numpy as np
import pytest

from mlprune_jax.data.custom import load_custom
from mlprune_jax.errors import ConfigError, DataError


def ids(examples):
    assert examples.labels is not None
    return examples.labels.tolist()


def write(folder, **files):
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


@pytest.mark.parametrize("dev", ["dev", "validation"])
def test_a_folder_of_any_formats(tmp_path, dev):
    write(tmp_path, train_csv='id,text,topic\n1,"a, b",sport\n2,c,art\n3,d,sport\n')
    write(tmp_path, **{f"{dev}_jsonl": '{"topic": "sport", "text": "x"}\n', "test_tsv": "text\ny\n"})
    task, splits = load_custom(tmp_path, "text", "topic")
    assert task.labels == ("art", "sport")
    assert task.metrics == ("accuracy",)
    assert splits["train"].texts == (["a, b", "c", "d"],)
    assert ids(splits["train"]) == [1, 0, 1]
    assert ids(splits["dev"]) == [1]
    assert splits["test"].labels is None


def test_whole_number_labels_sort_as_numbers(tmp_path):
    rows = "".join(f"x\t{label}\n" for label in (10, 9, -1, 10))
    write(tmp_path, train_tsv=f"text\tstars\n{rows}", dev_tsv=f"text\tstars\n{rows}")
    assert load_custom(tmp_path, ["text"], "stars")[0].labels == ("-1", "9", "10")


def test_regression_and_pairs_from_named_files(tmp_path):
    write(tmp_path, a_tsv="q\tp\tscore\nx\ty\t0.5\n")
    task, splits = load_custom({"train": tmp_path / "a.tsv"}, ("q", "p"), "score", kind="regression", name="mine")
    assert (task.kind, task.name, task.labels, task.metrics[0]) == ("regression", "mine", (), "pearson")
    assert splits["train"].texts == (["x"], ["y"])
    assert ids(splits["train"]) == [np.float32(0.5)]


def test_only_the_splits_that_are_asked_for_are_read(tmp_path):
    """Found by review: a test file with placeholders for labels stopped the evaluation of the dev split."""
    rows = "text\tlabel\na\tyes\nb\tno\n"
    write(tmp_path, train_tsv=rows, dev_tsv=rows, test_tsv="text\tlabel\na\t-1\n")
    with pytest.raises(DataError, match=r"test.tsv, line 2: .*holds '-1'"):
        load_custom(tmp_path, "text", "label")
    assert ids(load_custom(tmp_path, "text", "label", splits=["dev"])[1]["dev"]) == [1, 0]
    (tmp_path / "train.tsv").write_text("damaged")
    assert list(load_custom(tmp_path, "text", "label", ("no", "yes"), splits=["dev"])[1]) == ["dev"]


def test_given_labels_keep_their_order_and_no_other_is_allowed(tmp_path):
    write(tmp_path, x_tsv="text\tlabel\na\tyes\nb\tno\n")
    task, splits = load_custom({"dev": tmp_path / "x.tsv"}, ["text"], "label", labels=("yes", "no"), metrics=("f1",))
    assert task.metrics == ("f1",)
    assert ids(splits["dev"]) == [0, 1]
    with pytest.raises(DataError, match=r"x.tsv, line 3: column 'label' holds 'no', wanted one of yes, never"):
        load_custom({"dev": tmp_path / "x.tsv"}, ["text"], "label", labels=("yes", "never"))
    with pytest.raises(ConfigError, match="train split"):
        load_custom({"dev": tmp_path / "x.tsv"}, ["text"], "label")


def test_numbers_with_fractions_are_no_classes(tmp_path):
    """Found by a newcomer, who had forgotten to set regression and was told to repair a label."""
    write(tmp_path, train_tsv="label\ttext\n0.5\ta\n3\tb\n3\tc\n", dev_tsv="label\ttext\n3\ta\n")
    with pytest.raises(DataError, match=r"holds numbers with fractions: 0.5, 3\n.*regression"):
        load_custom(tmp_path, "text", "label")
    assert load_custom(tmp_path, "text", "label", labels=("0.5", "3"))[0].labels == ("0.5", "3")


def test_a_label_that_only_dev_has(tmp_path):
    write(tmp_path, train_tsv="text\tlabel\na\t0\nb\t1\nc\t1\n", dev_tsv="text\tlabel\na\t2\n")
    with pytest.raises(DataError, match=r"dev.tsv, line 2: .*holds '2', wanted one of 0, 1"):
        load_custom(tmp_path, ["text"], "label")


@pytest.mark.parametrize(("label", "problem"), [("", "'' is blank"), (" ", "' ' is blank"), ("1 ", "'1 ' is padded")])
def test_labels_that_are_blank_or_padded_must_be_named(tmp_path, label, problem):
    """Found by review: a missing label was a class of its own."""
    write(tmp_path, train_csv=f"text,label\na,0\nb,{label}\nc,1\n", dev_csv="text,label\na,0\n")
    with pytest.raises(DataError, match=f"train.csv, line 3: label {problem}"):
        load_custom(tmp_path, ["text"], "label")
    task, _ = load_custom(tmp_path, ["text"], "label", labels=["0", "1", label])
    assert task.labels == ("0", "1", label)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, r"no train.\*; it holds nothing"),
        ({"train_tsv": "text\tlabel\n"}, r"no dev.\* or validation.\*; it holds train.tsv"),
        ({"train_tsv": "", "train_csv": ""}, "several files for train: train.csv, train.tsv"),
        ({"train_tsv": "text\tlabel\na\t1\n", "dev_tsv": "text\tlabel\na\t1\n"}, "one label only"),
        ({"train_tsv": "text\tlabel\na\t.1\nb\t.2\nc\t.3\n", "dev_tsv": "text\tlabel\na\t1\n"}, "each of its 3 rows"),
        ({"train_tsv": "text\tlable\na\t1\n", "dev_tsv": ""}, "did you mean 'lable'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, files, problem):
    write(tmp_path, **files)
    with pytest.raises(DataError, match=problem):
        load_custom(tmp_path, ["text"], "label")


def test_no_folder_and_no_such_kind(tmp_path):
    with pytest.raises(DataError, match="cannot be read as a folder"):
        load_custom(tmp_path / "none", ["text"], "label")
    with pytest.raises(ConfigError, match="kind 'span'"):
        load_custom(tmp_path, ["text"], "label", kind="span")
