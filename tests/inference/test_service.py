"""From a folder to predictions: Python, the predict command and the bench command, on a block-pruned model."""

import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mlprune_jax.data.demo import VOCABULARY, write_demo
from mlprune_jax.data.encode import load_tokenizer
from mlprune_jax.errors import ConfigError, DataError, IntegrityError, ModelError, NumericalError
from mlprune_jax.inference import calls, service
from mlprune_jax.inference.predict import predict_file
from mlprune_jax.inference.service import as_rows, chunk_size, load
from mlprune_jax.inference.simplify import Masked
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.manifest import MANIFEST
from mlprune_jax.models.model_folder import MASKS
from mlprune_jax.models.pretrained import save_pretrained
from mlprune_jax.pruning.masks import apply_masks
from tests.inference.conftest import CONFIG, plain_logits, random_masks, random_params

LABELS = ("bad", "good")
TEXTS = [
    "the film was not very good .",
    "its plot is lovely .",
    "the music felt dull although the cast is superb .",
    "",
    "this ending is " + "very " * 40 + "harsh .",
]


@pytest.fixture(scope="module")
def model():
    config = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)})
    masks = random_masks(config, 0.5, 0)
    params = apply_masks(random_params(config, "classification", 2), masks)
    return Masked(params, masks, config)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = write_demo(tmp_path_factory.mktemp("model"), train_size=1, dev_size=1)
    task = {"task": "demo", "max_length": 16, "length_buckets": [8, 16]}
    extra = {"mlprune": {"task": task}}
    save_pretrained(path, model.config, model.params, kind="classification", labels=LABELS, extra_config=extra)
    save_masks(path, model.masks)
    return path


@pytest.fixture(scope="module")
def predictor(folder):
    return load(folder).compile(batch_sizes=(1, 4), implementation="xla")


@pytest.fixture(scope="module")
def wanted(model, folder):
    """Probabilities by the training model, one text at a time."""
    tokenizer, found = load_tokenizer(folder), []
    for text in TEXTS:
        ids = np.asarray(tokenizer(text, truncation=True, max_length=16)["input_ids"], np.int32)[None]
        inputs = (ids, np.array([ids.shape[1]]), np.zeros_like(ids))
        logits = plain_logits(model.config, model.params, "classification", inputs)[0]
        found.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    return np.array(found)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_predictions_in_the_order_of_the_texts(predictor, wanted, device, monkeypatch):
    monkeypatch.setattr(calls, "platform", lambda: device)  # which decides whether batches are begun ahead
    batches = predictor(TEXTS * 4)  # five batches, more than are begun ahead
    np.testing.assert_allclose([p.probabilities for p in batches], np.tile(wanted, (4, 1)), atol=1e-4)
    predictions = batches[: len(TEXTS)]
    assert [p.label for p in predictions] == [LABELS[i] for i in wanted.argmax(1)]
    assert [p.score for p in predictions] == [max(p.probabilities) for p in predictions]
    assert predictor([]) == []


def test_a_stream_is_read_no_further_than_a_chunk_ahead(predictor, wanted):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield TEXTS[len(taken) % 2]

    stream = predictor.stream(endless(), chunk=6)
    first = [next(stream) for _ in range(7)]
    assert len(taken) == 12
    np.testing.assert_allclose([p.probabilities for p in first], wanted[[1, 0, 1, 0, 1, 0, 1]], atol=1e-4)


def test_texts_and_pairs_do_not_mix(predictor):
    with pytest.raises(DataError, match=r"takes single texts \(sentence\), got pairs"):
        predictor([("the film", "is good ."), ("its plot", "was dull .")])
    with pytest.raises(DataError, match="mixed"):
        predictor(["one", ("two", "three")])


@pytest.mark.parametrize(
    "texts", ["one string", None, {"text": "a"}, [None], [("a", "b", "c")], [("a", 1)], [["a", "b"]], [()]]
)
def test_what_is_no_text_is_refused(texts):
    with pytest.raises(DataError, match=r"come as a list|a text is a string"):
        list(as_rows(texts))


def test_half_a_character_is_named():
    with pytest.raises(DataError, match="the text at place 1 holds half a surrogate pair"):
        list(as_rows(["good", "a\ud800"]))


def test_texts_may_be_anything_that_gives_them_in_order():
    for texts in ((text for text in TEXTS), np.array(TEXTS), tuple(TEXTS)):
        assert list(as_rows(texts)) == [(text,) for text in TEXTS]
    assert list(as_rows([("a", "b")])) == [("a", "b")]
    assert list(as_rows(iter(()))) == []


def test_a_stream_takes_texts_alone(predictor):
    with pytest.raises(DataError, match="come as a list"):
        predictor.stream("good")  # else each letter would be a text
    with pytest.raises(ConfigError, match="chunk must be a whole number of at least 1, got 0"):
        predictor.stream(TEXTS, chunk=0)


@pytest.mark.parametrize("given", [1.5, "3", -1])
def test_a_chunk_is_a_whole_number(given):
    assert chunk_size(np.int64(3)) == 3
    with pytest.raises(ConfigError, match="chunk must be a whole number"):
        chunk_size(given)


def test_a_folder_that_names_no_lengths_is_said_to_cut(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(service, "LENGTHS", (8,))
    shutil.copytree(folder, tmp_path / "foreign")
    stored = json.loads((folder / "config.json").read_text())
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "mlprune"}))
    load(tmp_path / "foreign", task="sst2").compile(batch_sizes=[1])
    assert "names no lengths: longer texts are cut at 8 tokens; `lengths` may go up to 32" in caplog.text


def test_texts_that_were_cut_are_counted(folder):
    predictor = load(folder).compile(batch_sizes=[1], lengths=[8])
    predictor(["very " * 6, "very " * 7])
    assert list(predictor.stream(["very " * 40]))
    assert predictor.truncated == 2


def test_what_came_before_a_failing_source_is_answered(predictor, wanted):
    def failing():
        yield from TEXTS[:3]
        raise OSError("the disk is gone")

    answered = []
    with pytest.raises(OSError, match="the disk is gone"):
        answered.extend(p.probabilities for p in predictor.stream(failing()))
    np.testing.assert_allclose(answered, wanted[:3], atol=1e-4)


@pytest.mark.parametrize(("wrong", "told"), [(None, "a text is a string"), (("a", "b"), "cannot be mixed")])
def test_what_came_before_a_wrong_text_is_answered(predictor, wanted, wrong, told):
    """Found by review: it took the good ones of its chunk along, and was counted from there."""
    answered = []
    with pytest.raises(DataError, match=rf"{told}.* at place 3"):
        answered.extend(p.probabilities for p in predictor.stream(iter([*TEXTS[:3], wrong, "good"]), chunk=2))
    np.testing.assert_allclose(answered, wanted[:3], atol=1e-4)


def test_predictors_of_one_model_do_not_disturb_each_other(folder):
    """They share a tokenizer."""
    model = load(folder)
    predictors = [model.compile(batch_sizes=[4], lengths=[length]) for length in (8, 16)]
    alone = [predictor(TEXTS[:4]) for predictor in predictors]
    assert alone[0] != alone[1]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda i: predictors[i % 2](TEXTS[:4]), range(200)))
    finally:
        sys.setswitchinterval(interval)
    assert together == [alone[i % 2] for i in range(200)]


def test_a_text_that_takes_long_does_not_hold_up_others(predictor, monkeypatch):
    """Found by review: calls waited for each other's tokens, one text of 5 MB for all."""
    begun, answered = threading.Event(), threading.Event()

    def encode(examples, *args, **options):
        if examples.texts[0] == ["good"]:
            begun.set()
            assert answered.wait(20)
        return encoded(examples, *args, **options)

    encoded = service.encode
    monkeypatch.setattr(service, "encode", encode)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(predictor, ["good"])
        assert begun.wait(20)
        assert len(pool.submit(predictor, ["bad"]).result(20)) == 1
        answered.set()
        assert len(slow.result(20)) == 1


def test_a_tokenizer_in_python_works_for_one_thread_at_a_time(folder, monkeypatch):
    """Those of Japanese BERTs hold a MeCab tagger, which bears no two."""

    class Alone:
        is_fast = False

        def __init__(self, tokenizer):
            self.tokenizer, self.busy, self.overlaps = tokenizer, 0, 0

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __len__(self):
            return len(self.tokenizer)

        def __call__(self, *args, **options):
            self.busy += 1
            self.overlaps += self.busy > 1
            time.sleep(0.005)
            self.busy -= 1
            return self.tokenizer(*args, **options)

    slow = Alone(load_tokenizer(folder))
    monkeypatch.setattr(service, "load_tokenizer", lambda _: slow)
    predictor = load(folder).compile(batch_sizes=[1], lengths=[8])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: predictor([text]), TEXTS[:4] * 4))
    assert slow.overlaps == 0


def test_logits_that_are_not_finite_are_no_answer(tmp_path):
    config = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)})
    path = write_demo(tmp_path, train_size=1, dev_size=1)
    params = random_params(config, "classification", 2)
    params["head"]["kernel"] = params["head"]["kernel"] * np.float32(1e6)
    save_pretrained(path, config, params, kind="classification")
    with pytest.raises(NumericalError, match="not finite"):
        load(path).compile(batch_sizes=[1], lengths=[8], dtype="float16")(["good"])


def test_saving_another_model_removes_the_masks_of_the_old(tmp_path):
    (tmp_path / MASKS).write_bytes(b"of another model")
    config = CONFIG.model_copy(update={"vocab_size": len(VOCABULARY)})
    save_pretrained(tmp_path, config, random_params(config, "span", 2), kind="span")
    assert not (tmp_path / MASKS).exists()


def test_what_cannot_be_loaded(folder, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="empty"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="is for task demo, not mnli"):
        load(folder, task="mnli")
    for name in ("config.json", "pruning.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / MASKS).write_bytes((folder / MASKS).read_bytes()[:-7])
    with pytest.raises(IntegrityError, match=r"masks.safetensors cannot be read"):
        load(tmp_path)


def predictions_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_predict_streams_jsonl(command, folder, wanted, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": i, "sentence": text}) + "\n" for i, text in enumerate(TEXTS)))
    done = command("predict", folder, "-i", source, "-q")
    assert done.exit_code == 0, done.output
    records = predictions_of(done.stdout)
    assert [r["line"] for r in records] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([r["probabilities"]["good"] for r in records], wanted[:, 1], atol=1e-4)
    piped = command("predict", folder, "-i", "-", "-q", input=source.read_text())
    assert piped.stdout == done.stdout


def test_predict_reads_tsv_and_writes_a_file(command, folder, tmp_path):
    source, output = tmp_path / "in.tsv", tmp_path / "out.jsonl"
    source.write_text("id\ttext\n1\tthe film is good .\n2\ttoo\tmany\n3\tthe film is bad .\n")
    options = ("predict", folder, "-i", source, "--columns", "text", "-o", output, "-q")
    refused = command(*options)
    assert refused.exit_code == 3
    assert "line 3: wanted 2 columns, found 3" in refused.stderr
    assert not output.exists()
    assert [r["line"] for r in predictions_of((tmp_path / "out.jsonl.partial").read_text())] == [2]
    done = command(*options, "--skip-damaged")
    assert done.exit_code == 0, done.output
    assert "2" in done.stdout
    assert [r["line"] for r in predictions_of(output.read_text())] == [2, 4]


def test_predict_says_what_was_cut(folder, tmp_path, caplog):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS))
    assert predict_file(folder, source, tmp_path / "out.jsonl", lengths=[8]) == len(TEXTS)
    assert "in.jsonl: 3 of 5 are longer than 8 tokens and were cut" in caplog.text


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_predict_gives_back_the_columns_it_is_asked_to_keep(command, folder, tmp_path, ending):
    """In an object of their own: a column may be called as what is predicted is, or be the text itself."""
    source, output = tmp_path / f"in.{ending}", tmp_path / "out.jsonl"
    rows = [{"id": "7", "sentence": "good", "label": "1"}, {"id": "9", "sentence": "bad", "label": "0"}]
    table = "".join("\t".join(cells) + "\n" for cells in [rows[0], *map(dict.values, rows)])
    source.write_text(table if ending == "tsv" else "".join(json.dumps(row) + "\n" for row in rows))
    done = command("predict", folder, "-i", source, "-o", output, "--seq", 8, "--keep", "label, sentence,id")
    assert done.exit_code == 0, done.output
    found = predictions_of(output.read_text())
    assert [record["kept"] for record in found] == [{n: row[n] for n in ("label", "sentence", "id")} for row in rows]
    assert all(record["label"] in LABELS for record in found)
    refused = command("predict", folder, "-i", source, "--keep", "idd")
    assert refused.exit_code == 3
    assert "no column 'idd'" in refused.stderr


def test_predict_follows_a_link_and_writes_into_a_pipe(folder, tmp_path):
    source, link, target, pipe = (tmp_path / name for name in ("in.jsonl", "link.jsonl", "target.jsonl", "pipe"))
    source.write_text('{"sentence": "good"}\n')
    target.touch()
    link.symlink_to(target)
    assert predict_file(str(folder), str(source), str(link), lengths=[8]) == 1
    assert link.is_symlink()
    assert predictions_of(target.read_text())[0]["line"] == 1
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        predict_file(folder, source, pipe, lengths=[8])
        assert read.result() == target.read_text()
    assert pipe.is_fifo()


@pytest.mark.parametrize(("first", "lines"), [("a1\t1\t\tthe film is good .", [1, 2]), ("id\tsentence", [2])])
def test_predict_reads_a_glue_file_without_header(model, folder, tmp_path, first, lines):
    path = tmp_path / "cola"
    shutil.copytree(folder, path)
    stored = json.loads((path / "config.json").read_text())
    stored["mlprune"]["task"]["task"] = "cola"
    (path / "config.json").write_text(json.dumps(stored))
    (path / MANIFEST).unlink(missing_ok=True)
    source, output = tmp_path / "dev.tsv", tmp_path / "out.jsonl"
    source.write_text(f"{first}\n" + "\t".join(["a2", "bad"] if len(lines) == 1 else ["a2", "0", "*", "bad"]) + "\n")
    predict_file(path, source, output, lengths=[8])
    assert [r["line"] for r in predictions_of(output.read_text())] == lines


def test_predict_never_overwrites_its_input(command, folder, tmp_path):
    source = tmp_path / "same.jsonl"
    source.write_text('{"sentence": "good"}\n')
    done = command("predict", folder, "-i", source, "-o", source)
    assert done.exit_code == 2
    assert source.read_text() == '{"sentence": "good"}\n'
    source = source.rename(tmp_path / "out.jsonl.partial")  # where the output is collected
    done = command("predict", folder, "-i", source, "--format", "jsonl", "-o", tmp_path / "out.jsonl")
    assert done.exit_code == 2
    assert source.read_text() == '{"sentence": "good"}\n'


def test_predict_answers_what_stands_before_a_line_that_is_not_utf8(command, folder, tmp_path):
    source = tmp_path / "in.tsv"
    source.write_bytes(b"sentence\ngood\nbad\n\xff\ngood\n")
    for given in ({"input": source.read_bytes()}, {}):
        options = ("predict", folder, "-i", "-" if given else source, "--format", "tsv", "-q")
        refused = command(*options, **given)
        assert refused.exit_code == 3
        assert "line 4: column 'sentence' is not UTF-8" in refused.stderr
        assert [r["line"] for r in predictions_of(refused.stdout)] == [2, 3]
        told = command(*options, "--skip-damaged", **given)
        assert [r["line"] for r in predictions_of(told.stdout)] == [2, 3, 5]


@pytest.mark.parametrize(
    ("given", "table", "lines"),
    [
        ("\ufeffsentence\nthe film is good .\n", "tsv", [2]),
        ('sentence,id\n"good, and\nlong",1\nbad,2\n\n', "csv", [2, 4]),
        ("sentence\n", "tsv", []),
        ("", "jsonl", []),
    ],
)
def test_predict_reads_standard_input_like_a_file(command, folder, given, table, lines):
    done = command("predict", folder, "-i", "-", "--format", table, "-q", "--seq", "8", input=given)
    assert done.exit_code == 0, done.output
    assert [r["line"] for r in predictions_of(done.stdout)] == lines


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("-i", "nowhere.tsv"), 3, "no file 'nowhere.tsv'"),
        (("-i", "-", "--columns", "a,b,c"), 2, "one column or a pair"),
        (("-i", "-", "--columns", "wrong"), 3, "no column 'wrong'"),
        (("-i", "-", "--columns", "a,b"), 2, "the model takes 1 columns (sentence), got a, b"),
        (("-i", "-", "--implementation", "triton"), 2, "needs an NVIDIA GPU"),
        (("-i", "-", "--dtype", "int4"), 2, "dtype must be one of"),
        (("-i", "-", "-o", "no/such/folder/x"), 3, "cannot be written"),
        (("-i", "-", "--seq", "8,99"), 2, "above the model's 32 positions"),
        (("-i", "-", "--seq", "2"), 2, "lengths (--seq) of at most 2 tokens leave no room for text"),
        (("-i", "-", "--columns", "sentence, sentence"), 2, "two different ones"),
    ],
)
def test_predict_refuses(command, folder, args, code, told):
    done = command("predict", folder, *args, input='{"sentence": "a"}\n')
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in done.stderr
