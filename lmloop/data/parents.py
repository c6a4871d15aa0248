"""Lists of parents' ids that are made only when they are asked for: a file of 200 MB can have 15 million rows."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from lmloop.data.source import Keep


class _Ids(Sequence[str]):
    """Equal to a list of the same ids."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self._at(at) for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        return self._at(at)

    def _at(self, index: int) -> str:
        raise NotImplementedError


class RowIds(_Ids):
    """Ids of files, and of rows that are numbered in their files; in the order in which they are added."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, array[int] | None]] = []
        self._ends: list[int] = []

    def add(self, file: str) -> None:
        """A file that is a parent."""
        self._put(file, None, 1)

    def add_rows(self, prefix: str, numbers: Iterable[int]) -> None:
        """Rows: each id is `prefix` and the number."""
        kept = array("Q", numbers)
        if kept:
            self._put(prefix, kept, len(kept))

    def _put(self, text: str, numbers: array[int] | None, count: int) -> None:
        self._parts.append((text, numbers))
        self._ends.append(len(self) + count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for text, numbers in self._parts:
            if numbers is None:
                yield text
            else:
                yield from (f"{text}{number}" for number in numbers)

    def _at(self, index: int) -> str:
        part = bisect_right(self._ends, index)
        text, numbers = self._parts[part]
        return text if numbers is None else f"{text}{numbers[index - (self._ends[part] - len(numbers))]}"


class WantedIds(_Ids):
    """Those of some ids that are wanted. To count them asks for each."""

    def __init__(self, ids: Sequence[str], keep: Keep) -> None:
        self._ids = ids
        self._keep = keep
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def __iter__(self) -> Iterator[str]:
        return filter(self._keep, self._ids)

    def _at(self, index: int) -> str:
        return next(one for at, one in enumerate(self) if at == index)
