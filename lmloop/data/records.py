"""From a record (a JSON object, a Parquet row, a row of the hub) to its text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from lmloop.data.document import Message, Pair
from lmloop.data.source import one_line
from lmloop.preset.sources import RecordSource


class BadRecordError(ValueError):
    """A record that yields no text; the message is the reason on record."""


class NotJsonError(BadRecordError):
    """What breaks the grammar of JSON at `position`; `at_end`: it has begun well, but what it needs next is missing."""

    def __init__(self, message: str, position: int, at_end: bool) -> None:
        super().__init__(message)
        self.position = position
        self.at_end = at_end


class Content(NamedTuple):
    """What a record holds; see Document. A blank `text` is nothing, and is passed over."""

    text: str
    messages: tuple[Message, ...] | None = None
    pair: Pair | None = None


class Number(str):
    """A number as it is written in JSON: `3.10` stays `3.10`, and no number is too long."""

    __slots__ = ()


@dataclass(frozen=True)
class RecordShape:
    """Which part of a record is its text: one field, or several put into a format."""

    text_field: str = "text"
    fields: tuple[str, ...] | None = None
    format: str | None = None

    @staticmethod
    def of(section: RecordSource) -> RecordShape:
        """What a preset's source says."""
        return RecordShape(section.text_field, None if section.fields is None else tuple(section.fields), section.format)

    @property
    def columns(self) -> list[str]:
        """The fields that are read, each once."""
        return list(dict.fromkeys(self.fields or (self.text_field,)))

    def pick(self, names: Sequence[str]) -> list[str]:
        """Which of a table's columns are read. BadRecordError when one is missing."""
        for name in self.columns:
            if name not in names:
                raise missing_field(name, names, "column")
        return self.columns

    def content(self, record: Any) -> Content:
        """The text of a record, as what readers pass on."""
        return Content(self.text(record))

    def text(self, record: Any) -> str:
        """The text of a record; a record that is itself a string is its own text. BadRecordError says what is missing."""
        if isinstance(record, str) and not isinstance(record, Number) and self.fields is None:
            return encodable(record)
        if not isinstance(record, dict):
            raise BadRecordError(f"not an object with fields but {kind_of(record)}")
        for name in self.columns:
            if name not in record:
                raise missing_field(name, record)
        if self.fields is None or self.format is None:
            value = record[self.text_field]
            if not isinstance(value, str) or isinstance(value, Number):
                raise BadRecordError(f"field '{self.text_field}' is not text but {kind_of(value)}")
            return encodable(value)
        values = {name: as_text(name, record[name]) for name in self.fields}
        # one pass, and only over the declared names: braces elsewhere in the format or in a value are just text
        names = "|".join(re.escape(name) for name in sorted(values, key=len, reverse=True))
        return encodable(re.sub("{(" + names + ")}", lambda found: values[found[1]], self.format))


def missing_field(name: str, names: Iterable[str], what: str = "field") -> BadRecordError:
    """The reason why a record without a field is bad, with the fields that it has."""
    there = ", ".join(map(str, islice(names, 30))) or "none"
    return BadRecordError(f"no {what} '{name}'; there are: {one_line(there, 120)}")


def as_text(name: str, value: Any) -> str:
    """What a field holds as text: also a number, true or false, or several texts on lines of their own. BadRecordError."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) and not isinstance(item, Number) for item in value):
        return "\n".join(value)
    raise BadRecordError(f"field '{name}' is not text but {kind_of(value)}")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Number | int | float):
        return "a number"
    names = {dict: "an object", list: "a list", str: "a string", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def encodable(text: str) -> str:
    """`text` with halves of surrogate pairs joined, or replaced by U+FFFD where the other half is missing.

    JSON can spell such halves (`\\ud83d`, cut off by a program that counts UTF-16 units); UTF-8 cannot hold them.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise BadRecordError(f"field '{one_line(twice, 60)}' occurs twice")
    return record


def _constant(name: str) -> Any:
    raise BadRecordError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=Number, parse_float=Number)

MAX_VALUES = 4_000_000
"""In one record: `[1,1,1,` takes 40 times as much memory when it is parsed."""

FEW_CHARACTERS = 2 << 20
"""A text so short cannot hold too many values."""

_TEXTS = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def require_few_values(text: str) -> None:
    """Before a long text is decoded: BadRecordError when it holds so many values that they would not fit in memory."""
    if len(text) <= FEW_CHARACTERS or _separators(text) <= MAX_VALUES:
        return
    if _separators(_TEXTS.sub("", text)) > MAX_VALUES:  # a text may have as many commas as it likes
        raise BadRecordError(f"more than {MAX_VALUES:,} values in one record")


def _separators(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at `start` and where it ends. BadRecordError on anything that strict JSON does not allow.

    NotJsonError where it is not JSON at all.
    """
    try:
        return DECODER.raw_decode(text, start)
    except BadRecordError:
        raise
    except RecursionError:
        raise BadRecordError("nested too deeply") from None
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at character {error.pos - start + 1}"
        raise NotJsonError(reason, error.pos, error.msg.startswith("Unterminated") or error.pos == len(text)) from None
    except ValueError as error:
        raise BadRecordError(f"not JSON: {one_line(error)}") from None
