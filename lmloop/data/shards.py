"""Cutting a source into parts, each read by itself: what makes the order of a run the same for any number of ranks."""

from __future__ import annotations

import zlib

from lmloop.data.source import Keep, ShardedSource, Source
from lmloop.data.split import HashPart

VIRTUAL_SHARDS = 8
"""How many parts a source is cut into at most; a power of two, as every number of parts is (see tokens/dealing.py)."""

MIN_PARENTS = 1024
"""A finite source with fewer parents stays whole: its parts would be too uneven, and too small to be worth it."""


def shard_count(source: Source) -> int:
    """How many parts a source is cut into: 1, 2, 4 or 8, a function of the data alone. SourceError."""
    if isinstance(source, ShardedSource):
        count = VIRTUAL_SHARDS
        while source.shard_count(count) < count:
            count //= 2
        return count
    parents = source.parents()
    return VIRTUAL_SHARDS if parents is not None and len(parents) >= MIN_PARENTS else 1


def cut(source: Source, count: int | None = None) -> list[Source]:
    """The parts of a source, which together are the source; `count` of them where an earlier cut is to be repeated.

    A source that can be read in parts is asked for them; a finite one is cut by a hash of the parents. SourceError.
    """
    count = count or shard_count(source)
    if count == 1:
        return [source]
    if isinstance(source, ShardedSource):
        return [source.shard(index, count) for index in range(count)]
    return [HashPart(source, _in_shard(index, count)) for index in range(count)]


def _in_shard(index: int, count: int) -> Keep:
    """Whether a parent belongs to a part. Asked of every parent for every part, so it must cost next to nothing.

    CRC-32 alone is linear: neighbouring line numbers would fall into parts by a pattern. The product's upper bits (Knuth's
    multiplicative hashing) depend on all of its bits.
    """

    def keep(parent: str) -> bool:
        return ((zlib.crc32(parent.encode("utf-8")) * 0x9E3779B1 & 0xFFFFFFFF) >> 16) % count == index

    return keep
