"""The seam between readers of records and what is made of a record: a text, a conversation, or a pair of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, get_args

from lmloop.data.chat_formats import FORMATS, recognised, unrecognised
from lmloop.data.conversation import plain_text
from lmloop.data.pairs import PAIR_FIELDS, read_pair
from lmloop.data.records import BadRecordError, Content, RecordShape, kind_of, missing_field
from lmloop.preset.sources import Kind, RecordSource


class Shape(Protocol):
    """What is made of a record."""

    def pick(self, names: Sequence[str]) -> list[str]:
        """Which of a table's columns are read. BadRecordError when one is missing."""
        ...

    def content(self, record: Any) -> Content:
        """What a record holds. BadRecordError says what is wrong with it."""
        ...


def shape_of(section: RecordSource, kind: str) -> Shape:
    """What a preset's source says of its records; `kind` is its `data_type`."""
    return KindShape(kind, section.columns or {}) if kind in get_args(Kind) else RecordShape.of(section)


class KindShape:
    """Conversations, or pairs of answers.

    columns: our name of a field → what it is called in the data.
    """

    def __init__(self, kind: str, columns: Mapping[str, str]) -> None:
        """ValueError when `columns` names a field that the kind does not have."""
        self._kind = kind
        self._columns = dict(columns)
        known = _fields(kind)
        for name in columns:
            if name not in known:
                raise ValueError(f"data.sources: columns: '{name}' is no field of '{kind}': there are {', '.join(known)}")
        self._read = {self._columns.get(name, name) for name in known}

    def pick(self, names: Sequence[str]) -> list[str]:
        """The columns that a conversation can consist of; that there are enough of them is seen in each record."""
        for theirs in self._columns.values():
            if theirs not in names:
                raise missing_field(theirs, names, "column")
        found = [name for name in names if name in self._read]
        if not found:
            raise unrecognised(names) if self._kind == "chat" else missing_field(_fields(self._kind)[0], names, "column")
        return found

    def content(self, record: Any) -> Content:
        """The conversation or pair of a record; a record that is a list is a conversation's messages."""
        if isinstance(record, list) and self._kind in ("chat", "messages"):
            record = {"messages": record}
        if not isinstance(record, dict):
            raise BadRecordError(f"not an object with fields but {kind_of(record)}")
        for theirs in self._columns.values():
            if theirs not in record:
                raise missing_field(theirs, record)
        record = {**record, **{name: record[theirs] for name, theirs in self._columns.items()}}
        if self._kind == "pairs":
            pair = read_pair(record)
            return Content(plain_text([*pair.prompt, *pair.chosen]), pair=pair)
        messages = FORMATS[recognised(record) if self._kind == "chat" else self._kind].read(record)
        return Content(plain_text(messages), messages)


def _fields(kind: str) -> list[str]:
    """Every field that the readers of a kind know, the ones to expect first."""
    if kind == "pairs":
        return list(PAIR_FIELDS)
    return list(dict.fromkeys(name for format in FORMATS if kind in (format, "chat") for name in FORMATS[format].fields))
