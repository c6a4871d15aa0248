"""The seam between where text comes from and everything that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

    def parents(self) -> Sequence[str] | None:
        """Ids of all parents of a finite source, in order; None for a stream. Reads as little as it can."""
        ...


@runtime_checkable
class SelectiveSource(Source, Protocol):
    """A source that can pass over unwanted documents without reading them."""

    def read_where(self, keep: Keep, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """As `read`, only for documents whose parent is wanted."""
        ...


@runtime_checkable
class ShardedSource(Source, Protocol):
    """A source that can be read in parts, each by itself and without reading the rest."""

    def shard_count(self, limit: int) -> int:
        """How many parts there can be, 1 to `limit`: a function of the data alone. SourceError."""
        ...

    def shard(self, index: int, count: int) -> Source:
        """Part `index` of `count`, which is at most what `shard_count` says. Its name is that of the whole; ids of documents
        are unique over all parts, and the first part numbers its documents as the whole does."""
        ...


@runtime_checkable
class BreakableSource(Source, Protocol):
    """A source that may break off in the middle of a pass, as streams do, and says so.

    broken: it broke off and gives nothing more in this process. Its reading then ends as at the end of a pass, but its last
    position is where another process can go on. `why`, where there is such an attribute, says in one line what happened.
    """

    @property
    def broken(self) -> bool:
        """See above."""
        ...


def is_broken(source: Source) -> bool:
    """Whether a source broke off."""
    return isinstance(source, BreakableSource) and source.broken


def why_broken(source: Source) -> str:
    """Why a source broke off; "" where it does not say."""
    return getattr(source, "why", "")


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """An error's message on one line of at most `limit` characters; its kind where it has no message.

    What a terminal would obey rather than show (names of files and fields can hold anything) is written as `\\x1b`.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
