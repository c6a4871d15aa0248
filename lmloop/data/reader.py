"""What a reader of one file format offers, and what it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from lmloop.data.listing import OpenFile

Place = tuple[int, int, int]
"""A place in a file, of which only its reader knows the meaning; START is the beginning. Cheap to go to."""

START: Place = (0, 0, 0)

KeepNumber = Callable[[int], bool]
"""Whether the row of this number is wanted; asked before the row is parsed."""

MAX_WHOLE_BYTES = 1 << 30
"""A file that has to be held in memory as a whole may have this size."""


class Row(NamedTuple):
    """A good row: its number in the file (from 1), its text, the place after it, and the share of the file up to there.

    `lines` is for how many rows it counts beside bad ones: in a text file, whose bad rows are lines, its lines.
    """

    number: int
    text: str
    after: Place
    share: float
    lines: int = 1


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
        """Rows from `start` on. Rows without text are passed over. OSError when the disk fails."""
        ...

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the rows there may be, without parsing them."""
        ...


def excerpt(raw: bytes | str) -> str:
    """The beginning of a bad row, as text."""
    return raw[:160].decode("utf-8", "replace") if isinstance(raw, bytes) else raw[:160].encode("utf-8", "replace").decode()
