"""Windows of long contexts: together they hold every token, and an answer's tokens give back its text."""

import numpy as np
import pytest

from mlprune_jax.config.task import TaskSettings
from mlprune_jax.data import windows as module
from mlprune_jax.data.batches import Batches, eval_batches
from mlprune_jax.data.demo import write_demo
from mlprune_jax.data.encode import load_tokenizer
from mlprune_jax.data.squad import NOWHERE, SQUAD, Questions, load_squad
from mlprune_jax.data.windows import encode_windows, find_tokens
from mlprune_jax.errors import ConfigError, ModelError
from tests.byte_pairs import write_byte_pairs

SIZES = {"max_length": 16, "doc_stride": 3, "max_query_length": 5}
BUCKETS = (8, 16)
LONG = "the film is good but its plot was very dull , although this cast seems lovely and witty ."


def asked(*rows, spans=None):
    questions, contexts = map(list, zip(*rows, strict=True))
    labels = None if spans is None else np.array(spans, np.int32)
    ids = tuple(str(i) for i in range(len(rows)))
    return Questions((questions, contexts), labels, "test", ids, tuple(("",) for _ in rows))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_demo(tmp_path_factory.mktemp("demo"), train_size=1, dev_size=1))


def places(windows, row):
    return windows.chars[windows.offsets[row] : windows.offsets[row + 1]]


def test_windows_share_tokens_and_leave_none_out(tokenizer):
    windows = encode_windows(asked(("the plot", LONG)), tokenizer, **SIZES)
    alone = tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    parts = [[tuple(span) for span in places(windows, row).tolist() if span[0] >= 0] for row in range(len(windows))]
    assert len(parts) == 2
    assert windows.lengths.max() <= 16
    assert parts[0][-3:] == parts[1][:3]
    assert parts[0] + parts[1][3:] == alone
    assert windows.labels is None


@pytest.mark.parametrize("words", range(1, 40))
def test_windows_of_a_context_of_any_length(tokenizer, words):
    """Whatever a tokenizer says of what it cuts off: 0.23.1 and 0.23.2 of tokenizers lose a long context's end."""
    context = " ".join(("film", "plot", "good")[word % 3] for word in range(words))
    windows = encode_windows(asked(("the plot", context)), tokenizer, **SIZES)
    ends = [places(windows, row)[:, 1].max() for row in range(len(windows))]
    starts = [next(first for first, _ in places(windows, row) if first >= 0) for row in range(len(windows))]
    assert ends == sorted(set(ends))
    assert ends[-1] == len(context)
    assert starts[0] == 0
    assert all(length == SIZES["max_length"] for length in windows.lengths[:-1])
    shared = [context[start:end].split() for start, end in zip(starts[1:], ends[:-1], strict=True)]
    assert all(len(tokens) == SIZES["doc_stride"] for tokens in shared)


@pytest.mark.parametrize("answer", ["the", "plot was", "witty ."])
def test_windows_of_a_robertas_tokens(tmp_path, answer):
    """Two markers stand between question and context, all of one type, and a token's blank is no part of it."""
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    tokenizer, begin = load_tokenizer(write_byte_pairs(tmp_path)), LONG.index(answer)
    question = asked(("the plot", LONG), spans=[[begin, begin + len(answer)]])
    windows = encode_windows(question, tokenizer, max_length=32, doc_stride=12, max_query_length=5)
    held = [row for row in range(len(windows)) if windows.labels[row].any()]
    assert len(windows) > 1
    assert held
    for row in range(len(windows)):
        ids = windows.input_ids[windows.offsets[row] : windows.offsets[row + 1]]
        markers = [place for place, token in enumerate(ids.tolist()) if token in (0, 2)]
        assert markers == [0, 3, 4, len(ids) - 1]
    for row in held:
        first, last = windows.labels[row]
        assert LONG[places(windows, row)[first, 0] : places(windows, row)[last, 1]] == answer
    assert not windows.token_type_ids.any()


def test_markers_and_questions_have_no_place_in_the_context(tokenizer):
    windows = encode_windows(asked(("the plot", "the film is good")), tokenizer, **SIZES)
    spans = places(windows, 0)
    assert spans[:4].tolist() == [list(NOWHERE)] * 4
    assert spans[4].tolist() == [0, 3]
    assert spans[-1].tolist() == list(NOWHERE)
    assert windows.token_type_ids.tolist() == [0] * 4 + [1] * 5


def test_labels_point_at_the_answer_where_a_window_holds_it_and_at_the_start_else(tokenizer):
    begin = LONG.index("very dull")
    questions = asked(("plot", LONG), ("cast", LONG), spans=[(begin, begin + 9), NOWHERE])
    windows = encode_windows(questions, tokenizer, **SIZES)
    held = 0
    for row, (first, last) in enumerate(windows.labels):
        spans = places(windows, row)
        if (first, last) != (0, 0):
            held += 1
            assert windows.question[row] == 0
            assert LONG[spans[first, 0] : spans[last, 1]] == "very dull"
        elif windows.question[row] == 0:
            assert not (spans[spans[:, 0] >= 0, 0].min() <= begin and spans[:, 1].max() >= begin + 9)
    assert 0 < held < (windows.question == 0).sum()


def test_blanks_around_an_answer_are_no_part_of_it(tokenizer):
    text = "the  film is good"
    windows = encode_windows(asked(("plot", text), spans=[(3, 10)]), tokenizer, **SIZES)
    first, last = windows.labels[0]
    assert (first, last) != (0, 0)
    assert text[places(windows, 0)[first, 0] : places(windows, 0)[last, 1]] == "film"


def test_find_tokens():
    chars = np.array([NOWHERE, NOWHERE, (0, 3), (4, 8), (8, 9), NOWHERE], np.int32)
    assert find_tokens(chars, 0, 3).tolist() == [2]
    assert find_tokens(chars, 5, 9).tolist() == [3, 4]
    assert find_tokens(chars, 3, 4).tolist() == []
    assert find_tokens(chars, *NOWHERE).tolist() == []


@pytest.mark.parametrize("answer", ["film\u0301", "film\u200b", "\u00adfilm", "\u200bfilm \u200b"])
def test_characters_that_tokens_leave_out_do_not_lose_an_answer(tokenizer, answer):
    text = f"the {answer} is good"
    windows = encode_windows(asked(("plot", text), spans=[(4, 4 + len(answer))]), tokenizer, **SIZES)
    first, last = windows.labels[0]
    assert windows.input_ids[first : last + 1].tolist() == tokenizer.convert_tokens_to_ids(["film"])
    assert windows.out_of_reach == 0


def test_answers_that_no_window_holds_are_counted(tokenizer):
    text = "film \u200b is good"
    rows = [("plot", LONG), ("plot", LONG), ("plot", LONG), ("plot", text)]
    spans = [(0, len(LONG)), (4, 8), NOWHERE, (5, 6)]  # too long for a window; held; no answer; no token
    windows = encode_windows(asked(*rows, spans=spans), tokenizer, **SIZES)
    assert windows.out_of_reach == 2


def test_long_questions_lose_their_end(tokenizer):
    windows = encode_windows(asked(("the film is very , very good", "the plot")), tokenizer, **SIZES)
    assert windows.input_ids.tolist() == tokenizer("the film is very ,", "the plot")["input_ids"]
    assert windows.truncated == 1


def test_a_question_is_not_cut_within_a_character(shared):
    """Found by review: a Hangul syllable is up to three tokens, and a part of one came back whole: no room was left."""
    tokenizer = load_tokenizer(shared / "models" / "minilm-l6-h384")
    question = "한국어 질문은 어디에서 왔습니까 그리고 언제 어떻게 되었습니까"
    for most in range(1, 20):
        sizes = {"max_length": most + 3 + 9, "doc_stride": 8, "max_query_length": most}
        windows = encode_windows(asked((question, LONG), ("?", LONG)), tokenizer, **sizes)
        assert set(windows.question.tolist()) == {0, 1}
        asking = windows.lengths[0] - (places(windows, 0)[:, 0] >= 0).sum() - 3
        assert most - 3 <= asking <= most


def test_in_chunks_as_at_once(tokenizer, monkeypatch):
    questions = asked(*[("the plot", LONG), ("cast", "this cast"), ("film", LONG)], spans=[(4, 8), (0, 4), (4, 8)])
    whole = encode_windows(questions, tokenizer, **SIZES)
    monkeypatch.setattr(module, "_CHUNK", 1)
    again = encode_windows(questions, tokenizer, **SIZES)
    assert whole.digest() == again.digest()
    assert whole.question.tolist() == again.question.tolist()


def test_batches_have_two_labels(tokenizer):
    windows = encode_windows(asked(*[("plot", LONG)] * 4, spans=[(4, 8)] * 4), tokenizer, **SIZES)
    batch = Batches(windows, batch_size=2, buckets=BUCKETS, seed=0).batch(0)
    assert batch["labels"].shape == (2, 2)
    seen = np.concatenate([b["index"] for b in eval_batches(windows, batch_size=3, buckets=BUCKETS)])
    assert sorted(seen[seen >= 0]) == list(range(len(windows)))


def test_no_room(tokenizer):
    with pytest.raises(ConfigError, match="max_length 16 leaves 8 tokens of a context"):
        encode_windows(asked(("plot", LONG)), tokenizer, **{**SIZES, "doc_stride": 8})
    assert len(encode_windows(asked(("the film is very good", LONG)), tokenizer, **{**SIZES, "doc_stride": 7})) > 2


def test_a_tokenizer_without_places():
    with pytest.raises(ModelError, match="where its tokens stand"):
        encode_windows(asked(("plot", LONG)), object(), **SIZES)


def test_settings_of_spans_are_longer_unless_named():
    assert TaskSettings(task="squad").buckets == (128, 256, 384)
    assert TaskSettings(task="SQuAD2", max_length=256).buckets == (128, 256)
    assert TaskSettings(task="mrpc").buckets == (32, 64, 128)


INSIDE_WORDS = 39
"""Dev questions whose `answer_start`, the first place where the answer's letters stand, lies inside another word
("90" in "1990s", "ten" in "patented"): the tokens that hold them hold more."""


@pytest.mark.slow
def test_every_gold_span_of_the_dev_set_comes_back_from_its_window(shared):
    questions = load_squad(SQUAD["squad"], shared / "data" / "squad", "dev")
    tokenizer = load_tokenizer(shared / "models" / "minilm-l6-h384")
    windows = encode_windows(questions, tokenizer, **TaskSettings(task="squad").windowing)
    assert windows.lengths.max() <= 384
    found, inside = set(), set()
    for row in np.flatnonzero(windows.labels.any(axis=1)):
        question, (first, last) = int(windows.question[row]), windows.labels[row]
        found.add(question)
        context, (begin, end) = questions.texts[1][question], questions.labels[question]
        text = context[places(windows, row)[first, 0] : places(windows, row)[last, 1]]
        if text != questions.answers[question][0]:
            assert any(context[place - 1 : place + 1].isalnum() for place in (begin, end))
            inside.add(question)
    assert len(found) == len(questions) == 5400
    assert len(inside) == INSIDE_WORDS
