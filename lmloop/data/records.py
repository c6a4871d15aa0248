"""From a record (a JSON object, a Parquet row, a row of the hub) to its text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from lmloop.data.source import one_line
from lmloop.preset.sources import SourceBase


class BadRecordError(ValueError):
    """A record that yields no text; the message is the reason on record."""


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
    def of(section: SourceBase) -> RecordShape:
        """What a preset's source says."""
        return RecordShape(section.text_field, None if section.fields is None else tuple(section.fields), section.format)

    @property
    def columns(self) -> list[str]:
        """The fields that are read, each once."""
        return list(dict.fromkeys(self.fields or (self.text_field,)))

    def text(self, record: Any) -> str:
        """The text of a record; a record that is itself a string is its own text. BadRecordError says what is missing."""
        if isinstance(record, str) and not isinstance(record, Number) and self.fields is None:
            return encodable(record)
        if not isinstance(record, dict):
            raise BadRecordError(f"not an object with fields but {_kind(record)}")
        for name in self.columns:
            if name not in record:
                raise BadRecordError(f"no field '{name}'; there are: {one_line(', '.join(map(str, record)) or 'none', 120)}")
        if self.fields is None or self.format is None:
            value = record[self.text_field]
            if not isinstance(value, str) or isinstance(value, Number):
                raise BadRecordError(f"field '{self.text_field}' is not text but {_kind(value)}")
            return encodable(value)
        values = {name: _as_text(name, record[name]) for name in self.fields}
        # one pass, and only over the declared names: braces elsewhere in the format or in a value are just text
        names = "|".join(re.escape(name) for name in sorted(values, key=len, reverse=True))
        return encodable(re.sub("{(" + names + ")}", lambda found: values[found[1]], self.format))


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    raise BadRecordError(f"field '{name}' is not text but {_kind(value)}")


def _kind(value: Any) -> str:
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
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRecordError(f"field '{one_line(twice, 60)}' occurs twice")
    return record


def _constant(name: str) -> Any:
    raise BadRecordError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=Number, parse_float=Number)


def decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at `start` and where it ends. BadRecordError on anything that strict JSON does not allow."""
    try:
        return DECODER.raw_decode(text, start)
    except BadRecordError:
        raise
    except RecursionError:
        raise BadRecordError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadRecordError(f"not JSON: {error.msg} at character {error.pos - start + 1}") from None
    except ValueError as error:
        raise BadRecordError(f"not JSON: {one_line(error)}") from None
