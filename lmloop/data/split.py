"""Held-out shares of a finite source: by the hash rank of each parent, or by position where there is one parent only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.parents import WantedIds
from lmloop.data.source import Keep, SelectiveSource, Source

NEAR_CHARACTERS = 200
"""A cut by position is moved on to the next line break if there is one within so many characters."""

SHARD_CHARACTERS = 16_384
"""A part of one document that is read by itself has at least so many."""


def parent_hash(parent: str) -> int:
    """64 bits that depend on the parent's id only: neither on the seed nor on what else is in the corpus."""
    return int.from_bytes(hashlib.blake2b(parent.encode("utf-8"), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Split:
    """The three parts of a source; a part without documents is None."""

    train: Source
    validation: Source | None
    test: Source | None


def share_counts(total: int, validation: float, test: float) -> tuple[int, int]:
    """How many of `total` parents validate and test: the shares, rounded, at least one each while one is left to train."""

    def rounded(share: float) -> int:
        return max(int(total * share + 0.5 + 1e-9), 1) if share > 0 else 0

    validating = min(rounded(validation), max(total - 1, 0))
    testing = min(rounded(test), max(total - 1 - validating, 0))
    return validating, testing


def split(source: Source, validation: float, test: float, *, whole: Source | None = None) -> Split:
    """Split a finite source. Parents with the lowest hashes validate, the next test, the rest train.

    `whole` is the source in its own order, from which the held-out parts are read where `source` is a shuffled one.
    A parent that appears later falls on the side where its hash is, so nothing held out ever reaches training.
    """
    whole = whole or source
    parents = source.parents()
    assert parents is not None, f"{source.name} is a stream"
    if len(parents) == 1 and (validation + test or source is whole):
        return _cut(whole, parents[0], validation, test)
    if validation + test == 0 or not parents:
        return Split(source, None, None)
    validating, testing = share_counts(len(parents), validation, test)
    hashes = np.sort(np.fromiter(map(parent_hash, parents), dtype=np.uint64, count=len(parents)))
    low, high = int(hashes[validating]), int(hashes[validating + testing])

    def part(base: Source, first: int, beyond: int) -> Source:
        return HashPart(base, lambda parent: first <= parent_hash(parent) < beyond)

    return Split(
        part(source, high, 2**64),
        part(whole, 0, low) if validating else None,
        part(whole, low, high) if testing else None,
    )


class HashPart:
    """The documents of a source whose parents are wanted."""

    def __init__(self, source: Source, keep: Keep) -> None:
        self.name = source.name
        self._source = source
        self._keep = keep

    def parents(self) -> Sequence[str] | None:
        """The wanted parents."""
        parents = self._source.parents()
        return None if parents is None else WantedIds(parents, self._keep)

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass over the wanted documents, in the order of the source."""
        return self._read(self._keep, position, epoch)

    def read_where(self, keep: Keep, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass over those of them whose parents `keep` wants too; it is asked first."""
        own = self._keep
        return self._read(lambda parent: keep(parent) and own(parent), position, epoch)

    def _read(self, keep: Keep, position: Position, epoch: int) -> Iterator[tuple[Document, Position]]:
        if isinstance(self._source, SelectiveSource):
            return self._source.read_where(keep, position, epoch)
        return ((document, after) for document, after in self._source.read(position, epoch) if keep(document.parent))


class PositionPart:
    """The characters `first` to `beyond` (None: to the end) of a source with one parent, counted over its documents.

    A document of which only a part belongs here is named with the characters it has: `book.txt[0:900]`.
    """

    def __init__(self, source: Source, parent: str, first: int, beyond: int | None, total: int) -> None:
        self.name = source.name
        self.first = first
        self.beyond = beyond
        self._source = source
        self._parent = parent
        self._total = total

    def parents(self) -> list[str]:
        """The one parent, which the parts of a cut share."""
        return [self._parent]

    def shard_count(self, limit: int) -> int:
        """As many as there are SHARD_CHARACTERS: an update is then made of different places of a long text, not of one."""
        return min(max((self._end - self.first) // SHARD_CHARACTERS, 1), limit)

    def shard(self, index: int, count: int) -> PositionPart:
        """Part `index` of `count`, all of one length."""
        first, length = self.first, self._end - self.first
        beyond = self.beyond if index + 1 == count else first + length * (index + 1) // count
        return PositionPart(self._source, self._parent, first + length * index // count, beyond, self._total)

    @property
    def _end(self) -> int:
        return self.beyond if self.beyond is not None else max(self._total, self.first + 1)

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass over the part."""
        seen = position.get("characters", 0)
        beyond = self._end
        for document, after in self._source.read(position.get("inner", {}), epoch):
            if self.beyond is not None and seen >= self.beyond:
                return
            start = min(max(self.first - seen, 0), len(document.text))
            end = len(document.text) if self.beyond is None else min(self.beyond - seen, len(document.text))
            whole = end - start == len(document.text)
            seen += len(document.text)
            text = document.text if whole else document.text[start:end]
            if not text or text.isspace():
                continue
            name = document.id if whole else f"{document.id}[{start}:{end}]"
            progress = min((min(seen, beyond) - self.first) / (beyond - self.first), 1.0)
            yield Document(name, document.parent, text, progress), {"inner": after, "characters": seen}


def _cut(source: Source, parent: str, validation: float, test: float) -> Split:
    """Train, then validation, then test, in the order of the text. A conversation or pair cannot be cut: it trains."""
    total = 0  # wanted without a split too, for `progress` and for the number of shards
    for document, _ in source.read({}):
        if document.messages or document.pair:
            return Split(source, None, None)
        total += len(document.text)
    if validation + test == 0:
        return Split(PositionPart(source, parent, 0, None, total), None, None)
    wanted = [round(total * (1.0 - validation - test)), round(total * (1.0 - test))]
    first, second = (_line_break(source, at, total) for at in wanted)
    if first <= 0 or first >= total:
        return Split(source, None, None)
    validates = second > first and validation > 0
    tests = second < total and test > 0
    if not validates and not tests:
        return Split(source, None, None)
    parts = Split(
        PositionPart(source, parent, 0, first, total),
        PositionPart(source, parent, first, second if tests else None, total) if validates else None,
        PositionPart(source, parent, second, None, total) if tests else None,
    )
    for part in (parts.train, parts.validation, parts.test):  # of a few characters one part may be nothing but space
        if part is not None and next(part.read({}), None) is None:
            return Split(source, None, None)
    return parts


def _line_break(source: Source, wanted: int, total: int) -> int:
    """The character after the first line break at or after `wanted`, if it is near and not the end; else `wanted`."""
    seen = 0
    for document, _ in source.read({}):
        text = document.text
        if seen + len(text) > wanted:
            start = max(wanted - seen - 1, 0)  # a cut that already follows a line break stays
            found = text.find("\n", start, start + NEAR_CHARACTERS)
            at = seen + found + 1
            return at if found >= 0 and wanted <= at < total else wanted
        seen += len(text)
    return wanted
