"""A finite source in a seeded random order, new each epoch, and resumable at any document."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.files import Files
from lmloop.data.listing import Listed
from lmloop.data.source import Keep, Notify

_GOLDEN = 0x9E3779B97F4A7C15


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) on uint64: a bijection that scatters neighbours."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Indices 0 to count - 1 sorted by a hash of (seed, epoch, index); int64 [count]. The same on every machine."""
    with np.errstate(over="ignore"):
        key = mix(np.array([(seed + _GOLDEN) & (2**64 - 1)], dtype=np.uint64))
        key = mix(key + np.uint64(epoch) * np.uint64(_GOLDEN))
        hashes = mix(key + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return np.argsort(hashes, kind="stable")


@dataclass(frozen=True)
class _Index:
    files: list[Listed]
    mark: int
    entries: np.ndarray


class Shuffled:
    """The documents of `Files` in the order of `permutation`. The first reading goes through all files, to know them."""

    def __init__(self, files: Files, seed: int, notify: Notify) -> None:
        self.name = files.name
        self._files = files
        self._seed = seed
        self._notify = notify
        self._lock = threading.Lock()
        self._index: _Index | None = None

    def parents(self) -> Sequence[str]:
        """As those of the files, in their order."""
        return self._files.parents()

    def _current(self) -> _Index:
        with self._lock:
            if self._index is None:
                files, mark, entries = self._files.index()
                self._index = _Index(files, mark, np.frombuffer(entries, dtype=np.int64).reshape(-1, 5))
            return self._index

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass from `position` to the end, in the order of `epoch`."""
        return self.read_where(None, position, epoch)

    def read_where(self, keep: Keep | None, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass over the wanted parents."""
        index = self._current()
        count = len(index.entries)
        if position and position["listing"] != index.mark:
            self._notify(
                f"source '{self.name}': files were added, removed or changed since it was last read; the rest of this "
                "epoch is in a new random order, in which documents may come again or be missed"
            )
        order = permutation(count, self._seed, epoch)
        good, bad = position.get("rows", (0, 0))
        for at in range(min(position.get("index", 0), count), count):
            entry = index.entries[order[at]].tolist()
            file = index.files[entry[0]]
            if keep is not None and not keep(self._files.parent_of(file, entry[1])):
                continue
            faults, row = self._files.fetch(file, (entry[2], entry[3], entry[4]))
            for fault in faults:
                bad += 1
                self._files.set_aside(file, fault, good, bad)
            if row is None:
                continue
            good += row.lines
            yield (
                self._files.document(file, row, (at + 1) / count),
                {"index": at + 1, "listing": index.mark, "rows": [good, bad]},
            )
