"""Text to plain values: what is refused, and that JSON and YAML say the same."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmloop.preset.parsing import MAX_BYTES, one_line, parse, shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("[1]", "a list where"),
        ('"a"', "a text where"),
        ("3", "a number where"),
        ("null", "null where"),
        ("true", "true or false where"),
        ('{"a": 1, "a": 1}', '"a": this key stands twice'),
        ('{"model": {"b": 1, "b": 2}}', '"b": this key stands twice'),
        ('{"a": NaN}', "NaN: not a finite number"),
        ('{"a": -Infinity}', "-Infinity: not a finite number"),
        ('{"a": 1e999}', "not a finite number"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"a": 1,}', "line 1, column 9"),
        ('{"a": 1 // x\n}', "JSON has no comments"),
        ("{'a': 1}", "double quotes"),
        ('{"a": 1} {"b": 2}', "Extra data"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a": "x\\u0000"}', "NUL"),
        ('{"a\\u0000": 1}', "NUL"),
        ('{"a": ' * 40 + "1" + "}" * 40, "nested more than 32"),
        ('{"a": ' + "[" * 100_000, "nested more than 32"),
    ],
)
def test_json_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse(text.encode(), "json")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# only a comment", "null where"),
        ("- 1", "a list where"),
        ("just text", "a text where"),
        ("a: 1\nb: 2\na: 3", 'line 3: "a": this key stands twice'),
        ('1: a\n"1": b', "this key stands twice"),
        ("a: &x 1\nb: *x", "line 1: anchors and aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "anchors and aliases"),
        ("a: .nan", "line 1: .nan: not a finite number"),
        ("a: -.inf", "not a finite number"),
        ("a: 1e999", "not a finite number"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !!python/name:os.system", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!timestamp 2024-01-01", "tag"),
        ("a: !!set {x, y}", "tag"),
        ("a: !mine 3", "tag"),
        ("<<: {a: 1}", "merge keys"),
        ("? [a, b]\n: 1", "a key is a text"),
        ("true: 1", 'the key "true" is not a text'),
        ("1.5: 1", 'the key "1.5" is not a text'),
        ("~: 1", "is not a text"),
        ("a:\n\t- b", "line 2"),
        ("a: [1, 2", "not YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ('"\\UFFFFFFFF": 1', "not YAML"),
        ("a: \x07", "not YAML"),
        ("a: " + "[" * 100_000, "nested more than 32"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ('a: "x\\0"', "NUL"),
    ],
)
def test_yaml_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse(text.encode(), "yaml")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["json", "yaml"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "' + b"x" * MAX_BYTES + b'"}', "larger than (1,000,000|250,000) bytes"),
    ],
)
def test_bytes_refused(data: bytes, words: str, kind: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(data, kind)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ('"true"', "true"),
        ("|\n  two\n  lines", "two\nlines\n"),
    ],
)
def test_yaml_scalars_are_those_of_version_1_2(written: str, value: object) -> None:
    read = parse(f"a: {written}\n".encode(), "yaml")["a"]
    assert read == value
    assert type(read) is type(value)


def test_yaml_number_keys_become_text() -> None:
    assert parse(b"epochs: {1: 1, 2400: 3}", "yaml") == {"epochs": {"1": 1, "2400": 3}}


_scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.dictionaries(st.text(), _values, max_size=4))
def test_json_gives_back_what_was_written(value: dict) -> None:
    text = json.dumps(value)
    try:
        read = parse(text.encode(), "json")
    except ValueError as error:
        assert "NUL" in str(error) or "surrogate" in str(error)  # noqa: PT017
        return
    assert read == value


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text() | st.text(alphabet="ab:-?[]{},&*!|>%@`'\"#\n \t\\~.0e<=Ux"))
def test_any_text_is_values_or_one_line(text: str) -> None:
    for kind in ("json", "yaml"):
        try:
            value = parse(text.encode("utf-8", "surrogatepass"), kind)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1, repr(str(error))  # noqa: PT017
        else:
            assert isinstance(value, dict)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_values_or_one_line(data: bytes) -> None:
    for kind in ("json", "yaml"):
        try:
            parse(data, kind)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_shown_is_short_and_one_line() -> None:
    assert shown("a\nb\u2028c") == '"a\\nb\\u2028c"'
    assert len(shown(list(range(1000)))) == 60
    assert one_line("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert not math.isnan(len(shown({"a": [1.5, True, None]})))
