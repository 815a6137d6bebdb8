"""Tokenising: the ids a tokenizer gives one by one, cut as asked, without padding."""

import contextlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from types import ModuleType

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

from mlprune_jax.data import encode as module
from mlprune_jax.data.demo import write_demo
from mlprune_jax.data.encode import encode, form_tokens, load_tokenizer
from mlprune_jax.data.tasks import Examples
from mlprune_jax.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_demo(tmp_path_factory.mktemp("demo"), train_size=1, dev_size=1))


def test_pairs_in_chunks_are_what_the_tokenizer_gives(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    texts = (["good film", "", "bad", "the", "so witty"], ["was bad .", "its plot", "", "cast", "music was dull"])
    labels = np.arange(5, dtype=np.int32)
    encoded = encode(Examples(texts, labels, "x"), tokenizer, max_length=32)
    assert len(encoded) == 5
    assert encoded.labels is labels
    for i, (first, second) in enumerate(zip(*texts, strict=True)):
        part = slice(encoded.offsets[i], encoded.offsets[i + 1])
        alone = tokenizer([first], [second])
        assert encoded.input_ids[part].tolist() == alone["input_ids"][0]
        assert encoded.token_type_ids[part].tolist() == alone["token_type_ids"][0]


def test_the_longer_text_of_a_pair_is_cut(tokenizer):
    pair = Examples((["film"], ["its plot was not very good ."]), None, "x")
    encoded = encode(pair, tokenizer, max_length=7)
    wanted = tokenizer("film", "its plot was")
    assert encoded.input_ids.tolist() == wanted["input_ids"]
    assert encoded.labels is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_too_long_examples_are_cut_as_tokenizers_cut_them(tmp_path, side):
    """Found by review: left to a tokenizer, a pair of 1000 words each took 15 megabytes for a while."""
    tokenizer = load_tokenizer(write_demo(tmp_path, train_size=1, dev_size=1))
    tokenizer.truncation_side = side
    words = ["the", "film", "is", "good", "but", "its", "plot", "was"]
    sizes = [(first, second) for first in range(8) for second in range(8)]
    firsts, seconds = ([" ".join(words[:n]) for n in column] for column in zip(*sizes, strict=True))
    for texts in ((firsts,), (firsts, seconds)):
        for most in range(len(texts) * 2 + 1, 14):
            cut = tokenizer(*texts, truncation="longest_first", max_length=most)
            encoded = encode(Examples(texts, None, "x"), tokenizer, max_length=most)
            assert encoded.input_ids.tolist() == list(chain(*cut["input_ids"]))
            assert encoded.token_type_ids.tolist() == list(chain(*cut["token_type_ids"]))
            assert encoded.truncated == sum(bool(encoding.overflowing) for encoding in cut.encodings)


def test_a_slow_tokenizer_cuts_and_counts_as_well(tokenizer, tmp_path):
    """Found by review: what Japanese BERTs have counted no text as cut."""
    (tmp_path / "vocab.txt").write_text("\n".join(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "wordpiece",
        "do_lower_case": True,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    slow = load_tokenizer(tmp_path)
    assert not slow.is_fast
    pairs = Examples((["the film is very good", "cast"], ["its plot", "bad"]), None, "x")
    cut, wanted = encode(pairs, slow, max_length=8), encode(pairs, tokenizer, max_length=8)
    assert cut.input_ids.tolist() == wanted.input_ids.tolist()
    assert cut.token_type_ids.tolist() == wanted.token_type_ids.tolist()
    assert cut.truncated == wanted.truncated == 1


def test_a_slow_tokenizer_that_marks_no_texts_cuts_the_longer_one(tmp_path):
    """Found by review: token types, all 0, were taken for the texts, and the second one was lost."""
    words = ["the", "film", "is", "good", "but", "dull", "who", "lies"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word} 1\n" for word in words))
    merges = [("t", "h"), ("th", "e</w>")]
    (tmp_path / "bpe.codes").write_text("".join(f"{one} {other} 1\n" for one, other in merges))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PhobertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    slow = load_tokenizer(tmp_path)
    assert not slow.is_fast
    texts = ("the the the the the the", "the the")
    encoded = encode(Examples(([texts[0]], [texts[1]]), None, "x"), slow, max_length=9)
    wanted = slow(*texts, truncation="longest_first", max_length=9)["input_ids"]
    assert encoded.input_ids.tolist() == wanted
    assert wanted.count(slow.convert_tokens_to_ids("the")) == 5


def test_a_tokenizer_whose_files_are_another_ones_is_refused(tokenizer, tmp_path):
    """Found by review: transformers makes up five tokens, and all texts are unknown ones."""
    (tmp_path / "vocab.txt").write_text("\n".join(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ModelError, match=r"none of the files that a RobertaTokenizer is read from: vocab\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert load_tokenizer(tmp_path)("good")["input_ids"] == tokenizer("good")["input_ids"]


def test_long_texts_go_to_the_tokenizer_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "_CHARACTERS", 5)
    columns = (["four", "4444", "", "1", "1", "1"], ["", "4444", "", "1", "1", "1"])
    found = list(module.chunks(columns, 3))
    assert [(part.start, part.stop) for part in found] == [(0, 2), (2, 5), (5, 6)]
    assert list(module.chunks(([],), 3)) == []


def test_what_was_cut_and_what_was_left_out_is_counted(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    texts = ["film", "its plot was not very good .", "its plot was", "its plot was bad"]
    encoded = encode(Examples((texts,), None, "x", skipped=3), tokenizer, max_length=5)
    assert encoded.lengths.tolist() == [3, 5, 5, 5]
    assert (encoded.truncated, encoded.skipped) == (2, 3)


def test_no_room_for_text(tokenizer):
    assert len(encode(Examples((["film"],), None, "x"), tokenizer, max_length=3)) == 1
    with pytest.raises(ConfigError, match=r"max_length 4 .*\n.*use 5 or more"):
        encode(Examples((["film"], ["plot"]), None, "x"), tokenizer, max_length=4)


def test_a_real_tokenizer_whose_file_asks_for_padding(shared):
    tokenizer = load_tokenizer(shared / "models" / "minilm-l6-h384")
    encoded = encode(Examples((["a film", "a very long film"],), None, "x"), tokenizer, max_length=128)
    assert encoded.lengths.tolist() == [4, 6]
    assert len(tokenizer) == 30522


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer.json or vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer.json or vocab.txt"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path)


SEQUENCE = {
    "type": "Sequence",
    "normalizers": [{"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": "movie"}, "content": "film"}],
}


@pytest.mark.parametrize(
    ("part", "stored", "settings", "told"),
    [
        ("normalizer", {"lowercase": False}, {}, '"lowercase": false}; .* it is {"lowercase": true}'),
        ("normalizer", {"strip_accents": False}, {}, '"strip_accents": false}; .* it is {"strip_accents": null}'),
        ("normalizer", SEQUENCE, {"do_lower_case": True}, '"Sequence", .* it is {"type": "BertNormalizer"'),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}, {"do_lower_case": True}, '"WhitespaceSplit"}; .*"BertPreTok'),
    ],
)
def test_a_tokenizer_that_is_not_what_its_file_says_is_refused(tmp_path, part, stored, settings, told):
    """Transformers builds it from the vocabulary and ``tokenizer_config.json`` alone."""
    folder = write_demo(tmp_path, train_size=1, dev_size=1)
    own, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = json.loads(own.read_text())
    content[part] = stored if "type" in stored else {**content[part], **stored}
    own.write_text(json.dumps(content))
    plain = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}
    config.write_text(json.dumps(plain | settings))
    with pytest.raises(ModelError, match=rf"tokenizer.json says {part} .*{told}.*\n.*PreTrainedTokenizerFast"):
        load_tokenizer(folder)
    config.write_text(json.dumps(plain | settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    taken, text = load_tokenizer(folder), "The movie 's plot, WAS good."
    encoded = encode(Examples(([text], [text]), None, "x"), taken, max_length=64)
    assert encoded.input_ids.tolist() == Tokenizer.from_file(str(own)).encode(text, text).ids
    if "type" not in stored:
        same = {"do_lower_case" if name == "lowercase" else name: value for name, value in stored.items()}
        config.write_text(json.dumps(plain | same))
        assert load_tokenizer(folder)(text)["input_ids"] == taken(text)["input_ids"]


def test_a_refusal_shows_what_differs_and_no_table(tmp_path):
    """Found by review: a sentencepiece's normalizer is a table in base64, which hid all else."""
    folder = write_demo(tmp_path, train_size=1, dev_size=1)
    own = folder / "tokenizer.json"
    replace = {"type": "Replace", "pattern": {"String": "m" * 4000}, "content": "film"}
    own.write_text(json.dumps(json.loads(own.read_text()) | {"normalizer": replace}))
    with pytest.raises(ModelError, match=r'"String": "m{20}\.\.\."}, "content": "film"}; by'):
        load_tokenizer(folder)


def test_a_tokenizer_file_may_leave_out_what_is_by_default(tmp_path):
    """As older versions wrote it."""
    folder = write_demo(tmp_path, train_size=1, dev_size=1)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"].pop("type")
    content["normalizer"].pop("strip_accents")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(folder)("Film")["input_ids"] == load_tokenizer(folder)("film")["input_ids"]


def test_what_a_tokenizer_file_says_of_truncation_and_padding_is_left_out(tmp_path):
    """Threads share it, and the first call would have changed it beside the others."""
    folder = write_demo(tmp_path, train_size=1, dev_size=1)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.enable_truncation(4)
    own.enable_padding(length=10)
    own.save(str(folder / "tokenizer.json"))
    backend = load_tokenizer(folder).backend_tokenizer
    assert backend.truncation is None
    assert backend.padding is None


def test_a_cased_vocabulary_alone_is_not_lowercased(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "berlin", "Berlin"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(ModelError, match=r"does not say do_lower_case, and the vocabulary has 'Berlin'\n.*false"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path)("Berlin")["input_ids"] == [2, 7, 3]
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(words[:-1]))
    assert load_tokenizer(tmp_path)("Berlin")["input_ids"] == [2, 6, 3]


def test_transformers_is_imported_by_one_thread_at_a_time(tokenizer, tmp_path, monkeypatch):
    """Found by review: while it is, it swaps its own module, and a second thread could not import from the first."""
    tokenizer.save_pretrained(tmp_path)
    real, both, met = transformers.AutoTokenizer, threading.Barrier(2), []

    def looked_up(name):
        if name != "AutoTokenizer":
            raise AttributeError(name)
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(both.wait(timeout=0.2))
        return real

    half = ModuleType("transformers")
    half.__dict__["__getattr__"] = looked_up
    monkeypatch.setitem(sys.modules, "transformers", half)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(load_tokenizer, [tmp_path, tmp_path]))
    assert [len(each) for each in found] == [len(tokenizer)] * 2
    assert not met


def test_markers_are_no_text_though_a_tokenizer_does_not_call_them_special(tokenizer, tmp_path):
    """Found by review: one that names its padding alone would have had its markers exchanged and dropped."""
    markers = tokenizer("film", "plot")["input_ids"]
    wanted = {markers[0], markers[-1], tokenizer.pad_token_id}
    assert wanted <= form_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": tokenizer.pad_token}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    plain = load_tokenizer(tmp_path)
    assert plain.all_special_ids == [tokenizer.pad_token_id]
    assert form_tokens(plain) == wanted


def test_splits_of_other_labels_have_another_digest(tokenizer):
    """Else a run would go on with labels that were changed meanwhile, and recall answers to others."""
    labels = np.array([0, 1, 1], np.int32)
    encoded = encode(Examples((["good film", "bad", "cast"],), labels, "x"), tokenizer, max_length=8)
    assert replace(encoded, labels=labels.copy()).digest() == encoded.digest()
    assert replace(encoded, labels=None).digest() != encoded.digest()
    for name in ("input_ids", "token_type_ids", "offsets", "labels"):
        changed = getattr(encoded, name).copy()
        changed[1] += 1
        assert replace(encoded, **{name: changed}).digest() != encoded.digest()
