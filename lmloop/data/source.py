"""The seam between where text comes from and everything that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from lmloop.data.document import Document, Position

Keep = Callable[[str], bool]
"""Whether documents of this parent are wanted."""

Notify = Callable[[str], None]
"""Where a source says, in one line, what a person should know."""


class SourceError(ValueError):
    """A whole source cannot be read: a missing folder, no network, no such data set. One line, with the remedy."""


@runtime_checkable
class Source(Protocol):
    """Documents in a fixed order, readable from any position that an earlier reading gave.

    A source keeps no place of its own: several readers may read it at the same time, and a position from another process
    means the same here.
    """

    name: str

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass from `position` to the end: each document with the position after it.

        `epoch` matters only to a source that is shuffled anew each epoch. Raises SourceError, TooManyBadRows.
        """
        ...

    def parents(self) -> list[str] | None:
        """Ids of all parents of a finite source, in order; None for a stream. Reads as little as it can."""
        ...


@runtime_checkable
class SelectiveSource(Source, Protocol):
    """A source that can pass over unwanted documents without reading them."""

    def read_where(self, keep: Keep, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """As `read`, only for documents whose parent is wanted."""
        ...


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """An error's message on one line of at most `limit` characters; its kind where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
