"""Text tables come back exactly as written, or not at all."""

import contextlib
import csv
import io
import json
import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlprune_jax.data.tables import READERS, read_table, stream_rows
from mlprune_jax.errors import DataError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tsv_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), max_size=20)
odd_text = st.sampled_from(["NA", "null", "", '"', 'say "no', "it's", "a\x0bb", "a\u2028b", "a\x85b", "\ufeff", " x "])


def rows_of(cell: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(cell, cell), min_size=1, max_size=6)


def written(content: str | bytes, suffix: str) -> Path:
    # Not tmp_path: hypothesis calls a test many times, with one tmp_path for all.
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False, dir=tempfile.gettempdir()) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(file.name)


def read_back(content: str | bytes, suffix: str) -> list[tuple[str, ...]]:
    path = written(content, suffix)
    try:
        table = read_table(path, ["a", "b"])
    finally:
        path.unlink()
    return list(zip(table.columns["a"], table.columns["b"], strict=True))


@given(rows_of(tsv_text | odd_text), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(0, 2))
def test_tsv_round_trip(rows, end, bom, blank_lines):
    content = "\ufeff" * bom + end.join(["a\tb", *("\t".join(row) for row in rows)]) + end * blank_lines
    assert read_back(content, ".tsv") == rows


@given(rows_of(text | odd_text))
def test_csv_round_trip(rows):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    assert read_back(out.getvalue(), ".csv") == rows


@given(rows_of(text | odd_text), st.booleans())
def test_jsonl_round_trip(rows, ascii_only):
    lines = [json.dumps({"b": b, "other": None, "a": a}, ensure_ascii=ascii_only) for a, b in rows]
    assert read_back("\n".join(lines), ".jsonl") == rows


@given(st.binary(max_size=60) | text.map(str.encode), st.sampled_from(sorted(READERS)))
def test_no_input_raises_anything_but_a_data_error(content, suffix):
    with contextlib.suppress(DataError):
        read_back(content, suffix)


@pytest.mark.parametrize(
    ("suffix", "content", "line", "problem"),
    [
        (".tsv", "a\tb\n1\t2\n1\t2\t3", 3, "wanted 2 columns, found 3"),
        (".tsv", "a\tb\n\n1\t2", 2, "wanted 2 columns, found 1"),
        (".csv", 'a,b\n"1\n",2\n1', 4, "wanted 2 columns, found 1"),
        (".jsonl", '{"a": "1", "b": 2}\n{"a": "1"}', 2, "column 'b' is absent"),
        (".jsonl", '{"a": "1", "b": 2}\n{"a": "1", "b": null}', 2, "column 'b' is null"),
        (".jsonl", '{"a": "1", "b": 2}\n{"a": "\\ud800", "b": 2}', 2, "column 'a' is not UTF-8"),
        (".jsonl", '{"a": "1", "b": 2}\n{"a": ', 2, "not JSON: Expecting value"),
        (".jsonl", '{"a": "1", "b": 2}\n[1, 2]', 2, "wanted a JSON object, found list"),
        (".jsonl", "[" * 100_000, 1, "not JSON"),
        (".jsonl", '{"a": "1", "b": NaN}', 1, "not JSON: NaN is no JSON"),
        (".jsonl", '{"a": "1", "b": -Infinity}', 1, "not JSON: -Infinity is no JSON"),
    ],
)
def test_a_damaged_line_is_an_error_or_is_counted(tmp_path, caplog, suffix, content, line, problem):
    path = tmp_path / f"x{suffix}"
    path.write_text(content)
    with pytest.raises(DataError, match=f"line {line}: ") as caught:
        read_table(path, ["a", "b"])
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    good = {".tsv": "3\t4", ".csv": "3,4", ".jsonl": '{"a": "3", "b": "4"}'}[suffix]
    path.write_text(f"{content}\n{good}\n")
    with caplog.at_level(logging.WARNING):
        table = read_table(path, ["a", "b"], on_damaged="skip")
    assert table.columns["a"][-1] == "3"
    assert table.skipped == 1
    assert f"skipped 1 damaged lines of {len(table) + 1}" in caplog.text


@pytest.mark.parametrize(
    ("suffix", "content", "problem"),
    [
        (".tsv", "", "file is empty"),
        (".tsv", "\ufeff\r\n\n", "file is empty"),
        (".tsv", "a\tb\n", "no rows"),
        (".csv", "a,b\r\n", "no rows"),
        (".tsv", "a\tb\n1\t2\n\xff".encode("latin-1"), "line 3: not UTF-8"),
        (".tsv", "a\tb\n1\t2\n".encode("utf-16"), "line 1: not UTF-8"),
        (".tsv", "a\ta\tb\n1\t2\t3\n", "2 columns are named 'a'"),
        (".csv", 'a,b\n1,"2\n3,4\n', "line 2: unexpected end of data"),
        (".csv", 'a,b\n1,"2" \n', "line 2: "),
        (".tsv", "A\tbb\n1\t2\n", "no column 'a'; columns found: A, bb"),
        (".xlsx", "", "unknown table format '.xlsx'"),
        (".tsv", "a\tb\r1\t2\r", "lines end with \\r alone"),
        (".tsv", "\na\tb\n1\t2\n", "line 1: blank, wanted column names"),
        (".csv", "\na,b\n1,2\n", "line 1: blank, wanted column names"),
    ],
)
@pytest.mark.parametrize("on_damaged", ["error", "skip"])
def test_a_broken_file_is_always_an_error(tmp_path, suffix, content, problem, on_damaged):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_table(path, ["a", "b"], on_damaged=on_damaged)
    assert problem in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_missing_file_and_a_near_miss_of_a_name(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "none.tsv", ["a"])
    with pytest.raises(DataError, match="cannot be read"):
        read_table("nul\0.tsv", ["a"])
    (tmp_path / "x.csv").write_text("sentence,label\nx,1\n")
    with pytest.raises(DataError, match="did you mean 'sentence'"):
        read_table(tmp_path / "x.csv", ["sentense"])


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_a_cell_of_any_length(tmp_path, suffix):
    text, path = "x" * 200_000, tmp_path / f"x{suffix}"
    path.write_text({".tsv": f"a\n{text}", ".csv": f"a\n{text}", ".jsonl": json.dumps({"a": text})}[suffix])
    assert read_table(path, ["a"]).columns["a"] == [text]


def streamed(content, ending=".tsv", columns=("a",), **options):
    stream = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", newline="\n")
    return stream_rows(stream, ending, columns, source=Path("here"), **options)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".tsv", b"a\n1\n\xff\n3\n"),
        (".csv", b"a\n1\n\xff\n3\n"),
        (".jsonl", b'{"a": "1"}\n{"a": "\xff"}\n{"a": "3"}\n'),
    ],
)
def test_in_a_stream_a_line_that_is_not_utf8_is_a_damaged_one(ending, content, caplog):
    """Found by review: a byte on line 7 lost the answers to all rows before it, and could not be skipped."""
    damaged = 2 if ending == ".jsonl" else 3
    rows = streamed(content, ending)
    assert next(rows)[1] == ["1"]
    with pytest.raises(DataError, match=f"here, line {damaged}: column 'a' is not UTF-8"):
        next(rows)
    assert [cells for _, cells, _ in streamed(content, ending, on_damaged="skip")] == [["1"], ["3"]]
    assert f"here, line {damaged}: column 'a' is not UTF-8: left out" in caplog.text


def test_a_stream_in_another_encoding_is_refused_at_its_first_line():
    with pytest.raises(DataError, match="column names are not UTF-8"):
        next(streamed("a\tb\n1\t2\n".encode("utf-16")))


def test_optional_columns_of_a_stream_are_looked_up_row_by_row():
    rows = streamed(b'{"a": "1"}\n{"a": "2", "id": "q"}\n', ".jsonl", optional=["id"])
    assert list(rows) == [(1, ["1"], {}), (2, ["2"], {"id": "q"})]


def test_columns_that_must_hold_something():
    with pytest.raises(DataError, match="line 3: column 'a' is blank"):
        list(streamed(b"a\tb\n1\t\n \t2\n", columns=("a", "b"), filled=["a"]))


def test_numbers_and_booleans_of_json_become_text_and_optional_columns_may_miss(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": 1.5}\n{"a": true, "b": -2}\n')
    table = read_table(path, ["a", "b"], optional=["c"])
    assert table.columns == {"a": ["1", "true"], "b": ["1.5", "-2"]}
    assert table.lines == [1, 2]


def test_an_optional_column_that_comes_late_is_not_lost(tmp_path):
    """Found by review: labels that the first line of a test split lacked were dropped without a word."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "1"}\n{"a": "2", "b": "3"}\n')
    with pytest.raises(DataError, match="line 2: column 'b' is here, and not in the first row"):
        read_table(path, ["a"], optional=["b"])
    assert read_table(path, ["a"], optional=["b"], on_damaged="skip").skipped == 1
