from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.data.records import BadRecordError, RecordShape, decode, encodable

QA = RecordShape("text", ("question", "answer"), "Q: {question}\nA: {answer}")


@pytest.mark.parametrize(
    ("shape", "record", "text"),
    [
        (RecordShape(), {"text": "a"}, "a"),
        (RecordShape(), "a", "a"),
        (RecordShape("body"), {"body": "a", "text": "b"}, "a"),
        (QA, {"question": "1?", "answer": "2"}, "Q: 1?\nA: 2"),
        (QA, {"question": "{answer}", "answer": "{0.__class__} {question}"}, "Q: {answer}\nA: {0.__class__} {question}"),
        (QA, {"question": 3, "answer": True}, "Q: 3\nA: true"),
        (QA, {"question": "q", "answer": ["a", "b"]}, "Q: q\nA: a\nb"),
        (RecordShape("t", ("a", "ab"), "{ab}{a}{other}{}"), {"a": "1", "ab": "2"}, "21{other}{}"),
    ],
)
def test_text(shape: RecordShape, record: Any, text: str) -> None:
    assert shape.text(record) == text


@pytest.mark.parametrize(
    ("shape", "record", "reason"),
    [
        (RecordShape(), {"body": "a", "n": 1}, "no field 'text'; there are: body, n"),
        (RecordShape(), {}, "no field 'text'; there are: none"),
        (RecordShape(), {"text": None}, "field 'text' is not text but null"),
        (RecordShape(), {"text": 3}, "field 'text' is not text but a number"),
        (RecordShape(), {"text": ["a"]}, "field 'text' is not text but a list"),
        (RecordShape(), {"text": b"a"}, "field 'text' is not text but bytes"),
        (RecordShape(), ["a"], "not an object with fields but a list"),
        (RecordShape(), None, "not an object with fields but null"),
        (QA, "a", "not an object with fields but a string"),
        (QA, {"question": "a"}, "no field 'answer'; there are: question"),
        (QA, {"question": "a", "answer": None}, "field 'answer' is not text but null"),
        (QA, {"question": "a", "answer": {"x": 1}}, "field 'answer' is not text but an object"),
        (QA, {"question": "a", "answer": []}, "field 'answer' is not text but a list"),
    ],
)
def test_bad_records(shape: RecordShape, record: Any, reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        shape.text(record)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": 1, "a": 2}', "field 'a' occurs twice"),
        ('{"x": {"b": 1, "b": 1}}', "field 'b' occurs twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ('{"a": "b', "not JSON: Unterminated string starting at at character 7"),
        ('{"a": "\x01"}', "not JSON: Invalid control character at at character 8"),
        ("{'a': 1}", "not JSON: Expecting property name enclosed in double quotes at character 2"),
    ],
)
def test_strict_json(content: str, reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        decode(content)
    assert str(error.value) == reason


def test_numbers_keep_their_digits_however_many() -> None:
    record, _ = decode('{"a": 1' + "0" * 50_000 + ', "b": 3.10, "c": 1e999}')
    assert RecordShape("", ("b", "c"), "{b} {c}").text(record) == "3.10 1e999"
    assert len(record["a"]) == 50_001
    with pytest.raises(BadRecordError, match="not text but a number"):
        RecordShape("b").text(record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", "a"), ("\ud83d\ude00", "😀"), ("x\ud83d", "x\ufffd"), ("\ude00x", "\ufffdx"), ("é\ud83dé", "é\ufffdé")],
)
def test_encodable(text: str, expected: str) -> None:
    assert encodable(text) == expected


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.text() | st.lists(st.text()), max_size=5))
def test_decoding_equals_the_standard_library(record: dict[str, Any]) -> None:
    content = json.dumps(record)
    assert decode(content) == (json.loads(content), len(content))


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_encodable_always_is(text: str) -> None:
    result = encodable(text)
    result.encode("utf-8")
    if not any(0xD800 <= ord(character) < 0xE000 for character in text):
        assert result == text
