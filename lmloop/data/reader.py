"""What a reader of one file format offers, and what it yields."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from lmloop.data.document import Message, Pair
from lmloop.data.listing import OpenFile

Place = tuple[int, int, int]
"""A place in a file, of which only its reader knows the meaning; START is the beginning. Cheap to go to."""

START: Place = (0, 0, 0)

KeepNumber = Callable[[int], bool]
"""Whether the row of this number is wanted; asked before the row is parsed."""


class Row(NamedTuple):
    """A row that can be read: its number in the file (from 1), text, the place after it, and the share of the file up to it.

    `lines` is for how many rows it counts beside bad ones: in a text file, whose bad rows are lines, its lines.
    `messages` and `pair` as in Document.
    """

    number: int
    text: str
    after: Place
    share: float
    lines: int = 1
    messages: tuple[Message, ...] | None = None
    pair: Pair | None = None

    @property
    def is_blank(self) -> bool:
        """It has no text, and is passed over: it becomes no document."""
        return not self.text or self.text.isspace()


class BadRow(NamedTuple):
    """A row for the quarantine: its number (0 for the whole file), why, how it begins, the place after it."""

    number: int
    reason: str
    excerpt: str
    after: Place


class Reader(Protocol):
    """One file format.

    mark: what stands between a file's name and a row's number in a document's id (`#`, `@`); "" where a file is one
        document.
    rows_are_parents: whether each row is a parent of its own, rather than the file.
    """

    mark: str
    rows_are_parents: bool

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Rows from `start` on; some may be blank. OSError when the disk fails."""
        ...

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the rows there may be, without parsing them."""
        ...


def encoding_fault(file: OpenFile) -> str | None:
    """What is wrong with a file that begins with a byte order mark other than UTF-8's. It is read from its beginning."""
    file.handle.seek(0)
    head = file.handle.read(4)
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "UTF-32; convert the file to UTF-8"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16; convert the file to UTF-8"
    return None


def excerpt(raw: bytes | str) -> str:
    """The beginning of a bad row, as text."""
    return raw[:160].decode("utf-8", "replace") if isinstance(raw, bytes) else raw[:160].encode("utf-8", "replace").decode()
