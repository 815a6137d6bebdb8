import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlprune_jax.config.yaml_text import read_yaml, write_yaml
from mlprune_jax.errors import ConfigError

VALUES = {
    "3e-5": 3e-5,
    "1E3": 1000.0,
    "3.": 3.0,
    "-.5": -0.5,
    "-12": -12,
    "0": 0,
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "": None,
    # Text, though YAML 1.1 makes numbers, booleans, dates and merge keys of these.
    "010": "010",
    "0x10": "0x10",
    "1:30": "1:30",
    "1_000": "1_000",
    "2020-01-01": "2020-01-01",
    "no": "no",
    "On": "On",
    "=": "=",
    "<<": "<<",
    "32x32": "32x32",
}

REFUSED = {
    "a: 1\na: 2": "line 2, column 1: key 'a' is given twice",
    "a: {b: 1, b: 2}": "key 'b' is given twice",
    "a: {<<: 1}": "<< takes a mapping",
    "a: &x [*x]": "stands for more than",
    "a: *x": "undefined alias",
    "\n".join(["x0: &x0 [1]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 40))]): "stands for more than",
    "!!python/object/apply:os.system ['true']": "tags are not supported",
    "a: !!str 1": "tags are not supported",
    "[a]: 1": "a key must be plain text",
    "a: 1\n---\nb: 2": "another document",
    "a: [1, 2": "line 1",
    "a: \x00": "special characters are not allowed",
    "a: " + "9" * 5000: "digits",
    "[" * 5000: "nested too deeply",
}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_plain_scalar(text, value):
    read = read_yaml(f"key: {text}", source="test")["key"]
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", [".inf", "-.inf", "+.inf", ".nan"])
def test_not_finite(text):
    assert not math.isfinite(read_yaml(text, source="test"))


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=lambda value: value[:20])
def test_refused(text, message):
    with pytest.raises(ConfigError, match=r"^test") as caught:
        read_yaml(text, source="test")
    assert message in caught.value.message
    assert len(caught.value.message) < 400


def test_merge_fills_in_what_is_not_given():
    text = "a: &a {x: 1, y: [1]}\nb: &b {y: 2, z: 3}\nc: {x: 0, <<: *a}\nd: {<<: [*a, *b]}\ne: {'<<': *b}"
    read = read_yaml(text, source="test")
    assert read["c"] == {"x": 0, "y": [1]}
    assert read["d"] == {"x": 1, "y": [1], "z": 3}
    assert read["e"] == {"<<": {"y": 2, "z": 3}}
    assert read["a"]["y"] is not read["c"]["y"]


def test_keys_are_text_as_written():
    assert read_yaml("1: a\ntrue: b\n~: c", source="test") == {"1": "a", "true": "b", "~": "c"}


@given(st.text())
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        read_yaml(text, source="test")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from([*VALUES])
)
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(DATA)
def test_what_is_written_is_read_back(data):
    assert read_yaml(write_yaml(data), source="test") == data
