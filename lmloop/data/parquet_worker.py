"""Rows of Parquet files as JSON, in a confined process: the far side of `parquet_files.py`."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from lmloop.data.listing import Listed, open_regular
from lmloop.data.parquet_rows import MAX_ROW_BYTES, NotReadableError, ParquetRows, values

ANSWER_BYTES = 8 << 20
"""An answer has no more rows than this, but at least one."""

HELD_BYTES = 448 << 20
"""Decoded rows that are kept, for readers that go to and fro (`data.shuffle`)."""

MAX_FILES = 32
MAX_CURSORS = 16
SLICE_S = 2.0
"""Processor time after which an answer says how far it came."""

_files: OrderedDict[tuple[str, int], ParquetRows] = OrderedDict()
_cursors: list[_Cursor] = []  # the one that was used last at the end


def serve(path: str, version: int, columns: Sequence[str] | None, group: int, row: int, wanted: Sequence[int]) -> Any:
    """Of the file at `path`: without `columns` its column names and the rows of its row groups; else rows of a row group.

    Rows are answered as {"rows", "values", "fault"}: how many of the rows from `row` on are dealt with, up to the last of
    `wanted` (counted from `row`); [offset, value, null] or [offset, null, reason] of each wanted one among them; why what
    follows cannot be read, or null. ValueError where the file cannot be read at all.
    """
    parquet = _file(path, version)
    if columns is None:
        return {"names": parquet.names, "groups": parquet.group_rows}
    return _cursor(parquet, (path, version, tuple(columns), group), row).answer(row, wanted)


def _file(path: str, version: int) -> ParquetRows:
    key = (path, version)
    if key not in _files:
        try:
            opened = open_regular(Listed(path, path, 0))
        except OSError as error:
            raise ValueError(f"cannot be opened: {error.strerror or error}") from None
        if opened.version != version:
            opened.handle.close()
            raise ValueError("has changed while it was read")
        _files[key] = ParquetRows(opened.handle, opened.size)
        while len(_files) > MAX_FILES:
            _files.popitem(last=False)  # closed when no cursor needs it any more
    _files.move_to_end(key)
    return _files[key]


def _cursor(parquet: ParquetRows, key: tuple[Any, ...], row: int) -> _Cursor:
    """The cursor nearest before a row, or a new one; older ones give up what they keep when it is too much."""
    found = max((c for c in _cursors if c.key == key and c.first_row <= row), key=lambda c: c.first_row, default=None)
    if found is None:
        found = _Cursor(key, parquet.batches(key[3], key[2]))
    else:
        _cursors.remove(found)
    _cursors.append(found)
    del _cursors[:-MAX_CURSORS]
    excess = sum(cursor.bytes for cursor in _cursors) - HELD_BYTES
    for cursor in _cursors[:-1]:
        excess -= cursor.forget() if excess > 0 else 0
    return found


class _Cursor:
    """A reading of a row group, with the last batches that it gave."""

    def __init__(self, key: tuple[Any, ...], batches: Iterator[Any]) -> None:
        self.key = key
        self.bytes = 0
        self._batches = batches
        self._held: list[Any] = []
        self._starts = [0]  # the first row of each, and of the next
        self._fault: str | None = None

    @property
    def first_row(self) -> int:
        """The first row that it still has."""
        return self._starts[0]

    def forget(self, leave: int = 0) -> int:
        """Drop the oldest batches until `leave` bytes are left, or one batch, which may be half read; returns what went."""
        count, before = 0, self.bytes
        while self.bytes > leave and count < len(self._held) - 1:
            self.bytes -= self._held[count].nbytes
            count += 1
        del self._held[:count], self._starts[:count]
        return before - self.bytes

    def answer(self, row: int, wanted: Sequence[int]) -> dict[str, Any]:
        """As `serve` says."""
        end = time.process_time() + SLICE_S
        found: list[list[Any]] = []
        size = 0
        for first, count in _runs(wanted):
            done = 0
            while done < count:
                at = row + first + done
                if not self._reach(at, end):
                    reached = min(self._starts[-1] - row, first + done)
                    return {"rows": max(reached, 0), "values": found, "fault": self._fault}
                index = bisect_right(self._starts, at) - 1
                batch, within = self._held[index], at - self._starts[index]
                rows = batch.slice(within, min(count - done, batch.num_rows - within))
                while rows.nbytes > ANSWER_BYTES and rows.num_rows > 1:
                    rows = rows.slice(0, rows.num_rows // 2)
                size += rows.nbytes
                if size > ANSWER_BYTES and found:
                    return {"rows": first + done, "values": found, "fault": None}
                found += [[first + done + k, *value] for k, value in enumerate(_sendable(rows))]
                done += rows.num_rows
        return {"rows": wanted[-1] + 1, "values": found, "fault": None}

    def _reach(self, row: int, end: float) -> bool:
        """Decode up to a row; False where it cannot be had, or not in time."""
        while row >= self._starts[-1]:
            if self._fault is not None or time.process_time() > end:
                return False
            try:
                batch = next(self._batches)
            except NotReadableError as error:
                self._fault = str(error)
                return False
            self._held.append(batch)
            self._starts.append(self._starts[-1] + batch.num_rows)
            self.bytes += batch.nbytes
            self.forget(HELD_BYTES)
        return True


def _sendable(rows: Any) -> list[tuple[Any, str | None]]:
    """As `values`; a row that becomes too long as JSON is none."""
    found = values(rows)
    if rows.nbytes > ANSWER_BYTES and (size := len(json.dumps(found).encode())) > MAX_ROW_BYTES * 3 // 2:
        return [(None, f"a row of {size >> 20} MB is too long")]
    return found


def _runs(wanted: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours among numbers in order, as (first, how many)."""
    breaks = [0, *(k + 1 for k, (one, next_one) in enumerate(pairwise(wanted)) if next_one != one + 1), len(wanted)]
    for first, beyond in pairwise(breaks):
        yield wanted[first], beyond - first
