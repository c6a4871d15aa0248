"""Parquet files: a record in each row.

Files of this machine are decoded in a confined process, since a small file can ask for any amount of memory; what is read
through a connection that only this process has, here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lmloop.confined import Confined, ConfinedError
from lmloop.data.listing import OpenFile
from lmloop.data.parquet_rows import NotReadableError, ParquetRows, values
from lmloop.data.reader import BadRow, KeepNumber, Place, Row, excerpt
from lmloop.data.records import BadRecordError
from lmloop.data.shape import Shape

MEMORY_BYTES = 1280 << 20
"""Of address space, a third of which the libraries take without using it."""

ANSWER_S = 10.0
WINDOW_ROWS = 256
SLICE_ROWS = 64

_decoder = Confined("lmloop.data.parquet_worker:serve", memory_bytes=MEMORY_BYTES)

Value = tuple[int, Any, str | None]
"""A row's index in its group; its fields by name, or why it has none."""


class _GaveUpError(Exception):
    """The file has changed, or the process that decodes it had to be ended: nothing more is read of it."""


class Parquet:
    """A record in each row. A place is (row group, row in it, rows before it in the file)."""

    mark = "#"
    rows_are_parents = True

    def __init__(self, shape: Shape, *, confined: bool = True) -> None:
        self.shape = shape
        self._reading: type[_Here | _Confined] = _Confined if confined else _Here

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Records from `start` on."""
        group, row, number = start
        try:
            reading = self._reading(file)
            columns = self.shape.pick(reading.names)
        except ValueError as error:
            yield BadRow(0, str(error), "", (1 << 31, 0, 0))
            return
        groups, total = reading.group_rows, max(sum(reading.group_rows), 1)
        while group < len(groups):
            before = number - row  # rows before the group
            try:
                for at, value, reason in reading.values(columns, group, row, _of_group(keep, before)):
                    number = before + at + 1
                    after = (group, at + 1, number)
                    try:
                        if reason is not None:
                            raise BadRecordError(reason)
                        content = self.shape.content(value)
                    except BadRecordError as error:
                        yield BadRow(number, str(error), excerpt(str(value)), after)
                        continue
                    share = min(number / total, 1.0)
                    yield Row(number, content.text, after, share, messages=content.messages, pair=content.pair)
            except NotReadableError as error:
                yield BadRow(before + groups[group], str(error), "", (group + 1, 0, before + groups[group]))
            except _GaveUpError as error:
                yield BadRow(before + groups[group], f"{error}; nothing after it is read", "", (1 << 31, 0, 0))
                return
            number = before + groups[group]
            group, row = group + 1, 0

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the rows, from the file's footer."""
        try:
            yield from range(1, sum(self._reading(file).group_rows) + 1)
        except ValueError:
            return


def _of_group(keep: KeepNumber | None, before: int) -> KeepNumber:
    return (lambda at: True) if keep is None else (lambda at: keep(before + at + 1))


class _Here:
    """A file that is decoded in this process."""

    def __init__(self, file: OpenFile) -> None:
        self._parquet = ParquetRows(file.handle, file.size)
        self.names, self.group_rows = self._parquet.names, self._parquet.group_rows

    def values(self, columns: Sequence[str], group: int, row: int, wanted: KeepNumber) -> Iterator[Value]:
        """The wanted rows of a row group from `row` on."""
        first = 0
        for batch in self._parquet.batches(group, columns):
            for start in range(max(row - first, 0), batch.num_rows, SLICE_ROWS):
                indices = range(start, min(start + SLICE_ROWS, batch.num_rows))
                if any(want := [wanted(first + index) for index in indices]):
                    found = values(batch.slice(start, len(indices)))
                    yield from ((first + i, *v) for i, v, w in zip(indices, found, want, strict=True) if w)
            first += batch.num_rows


class _Confined:
    """A file that is decoded in a process of its own."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        try:
            footer = _decoder.call(file.path, file.version, None, 0, 0, [], timeout_s=ANSWER_S)
        except ConfinedError as error:
            raise NotReadableError(f"not a Parquet file that can be read: {error}") from None
        self.names: list[str] = footer["names"]
        self.group_rows: list[int] = footer["groups"]

    def values(self, columns: Sequence[str], group: int, row: int, wanted: KeepNumber) -> Iterator[Value]:
        """The wanted rows of a row group from `row` on."""
        while row < self.group_rows[group]:
            window = min(WINDOW_ROWS, self.group_rows[group] - row)
            want = [k for k in range(window) if wanted(row + k)]
            if not want:
                row += window
                continue
            try:
                answer = _decoder.call(self._file.path, self._file.version, columns, group, row, want, timeout_s=ANSWER_S)
            except ConfinedError as error:
                size = self.group_rows[group]
                raise _GaveUpError(f"row group of {size} rows cannot be decoded after {row}: {error}") from None
            except ValueError as error:
                raise _GaveUpError(str(error)) from None
            yield from ((row + offset, value, reason) for offset, value, reason in answer["values"])
            row += answer["rows"]
            if answer["fault"] is not None:
                raise NotReadableError(answer["fault"])
