"""The generated task: the same files for the same seed, readable offline, and not solved by words alone."""

import json

import numpy as np
import pytest

from mlprune_jax.data.demo import DEMO, VOCABULARY, write_demo
from mlprune_jax.data.encode import encode, load_tokenizer
from mlprune_jax.data.glue import load_examples
from mlprune_jax.errors import ConfigError, DataError

# A promise: stored figures of the demo name a seed.
FIRST_ROWS = [
    "sentence\tlabel",
    "its script felt very superb although their dialogue looks never great .\t1",
    "this film felt clumsy .\t0",
    "their camera is really witty but this camera felt boring .\t0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), seed=3, train_size=2000, dev_size=500)


def test_the_same_seed_writes_the_same_files(folder, tmp_path):
    again = write_demo(tmp_path / "a" / "b", seed=3, train_size=2000, dev_size=500)
    other = write_demo(tmp_path / "c", seed=4, train_size=2000, dev_size=500)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["dev.tsv", "tokenizer.json", "tokenizer_config.json", "train.tsv", "vocab.txt"]
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert (other / "train.tsv").read_bytes() != (folder / "train.tsv").read_bytes()
    assert (folder / "train.tsv").read_text().splitlines()[:4] == FIRST_ROWS


def test_splits_are_apart_balanced_and_short(folder):
    train, dev = (load_examples(DEMO, folder, split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (2000, 500)
    assert len(set(train.texts[0]) | set(dev.texts[0])) == 2500
    assert train.labels is not None
    assert 0.45 < train.labels.mean() < 0.55
    encoded = encode(train, load_tokenizer(folder), max_length=64)
    assert encoded.lengths.max() <= 24
    assert VOCABULARY.index("[UNK]") not in encoded.input_ids


def test_words_without_their_order_do_not_give_the_label_away(folder):
    train, dev = (load_examples(DEMO, folder, split) for split in ("train", "dev"))

    def counts(examples):
        return np.array([[text.split().count(word) for word in VOCABULARY] for text in examples.texts[0]], float)

    # Least squares on word counts; 0.75 is far above it and far below the 0.99 of a small transformer.
    assert train.labels is not None
    weights, *_ = np.linalg.lstsq(counts(train), np.where(train.labels, 1.0, -1.0), rcond=None)
    assert ((counts(dev) @ weights > 0) == dev.labels).mean() < 0.75


def test_the_tokenizer_reads_the_vocabulary(folder):
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == len(VOCABULARY) == len((folder / "vocab.txt").read_text().split("\n")) - 1
    ids = tokenizer("The PLOT was xyzzy .")["input_ids"]
    assert [VOCABULARY[i] for i in ids] == ["[CLS]", "the", "plot", "was", "[UNK]", ".", "[SEP]"]
    assert "/" not in json.dumps(json.loads((folder / "tokenizer_config.json").read_text()))  # nothing of this machine


def test_sizes_that_make_no_task(tmp_path):
    with pytest.raises(ConfigError, match="dev_size 0"):
        write_demo(tmp_path, dev_size=0)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_demo(tmp_path / "file", train_size=1, dev_size=1)
