"""Parquet files: a record in each row, read one row group at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from lmloop.data.listing import OpenFile
from lmloop.data.reader import BadRow, KeepNumber, Place, Row, excerpt
from lmloop.data.records import BadRecordError, RecordShape
from lmloop.data.source import one_line

HELD_BYTES = 256 << 20
"""Decoded row groups that are kept, for readers that go to and fro (`data.shuffle`); one is kept whatever its size."""

SLICE_ROWS = 64


class Parquet:
    """A record in each row. A place is (row group, row in it, rows before it in the file)."""

    mark = "#"
    rows_are_parents = True

    def __init__(self, shape: RecordShape) -> None:
        self.shape = shape
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, int, int, int], Any] = OrderedDict()

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Records from `start` on."""
        group, row, number = start
        try:
            parquet = self._open(file)
        except BadRecordError as error:
            yield BadRow(0, str(error), "", (1 << 31, 0, 0))
            return
        groups, total = parquet.metadata.num_row_groups, max(parquet.metadata.num_rows, 1)
        while group < groups:
            size = parquet.metadata.row_group(group).num_rows
            try:
                table = self._group(file, parquet, group)
            except Exception as error:
                number += size - row
                group, row = group + 1, 0
                reason = f"row group of {size} rows cannot be decoded: {one_line(error, 120)}"
                yield BadRow(number, reason, "", (group, 0, number))
                continue
            for at in range(row, size, SLICE_ROWS):
                count = min(SLICE_ROWS, size - at)
                wanted = [keep is None or keep(number + k + 1) for k in range(count)]
                values = self._values(table.slice(at, count)) if any(wanted) else []
                for k, value in enumerate(values):
                    here = number + k + 1
                    after = (group, at + k + 1, here)
                    if not wanted[k]:
                        continue
                    try:
                        if isinstance(value, BadRecordError):
                            raise value
                        text = self.shape.text(value)
                    except BadRecordError as error:
                        yield BadRow(here, str(error), excerpt(str(value)), after)
                        continue
                    if text and not text.isspace():
                        yield Row(here, text, after, min(here / total, 1.0))
                number += count
            group, row = group + 1, 0

    def _values(self, table: Any) -> list[Any]:
        """Rows as dicts; a BadRecordError for each that Python cannot hold (text that is not UTF-8)."""
        try:
            return table.to_pylist()
        except (UnicodeDecodeError, ValueError, OverflowError):
            values: list[Any] = []
            for at in range(table.num_rows):
                try:
                    values += table.slice(at, 1).to_pylist()
                except (UnicodeDecodeError, ValueError, OverflowError) as error:
                    values.append(BadRecordError(f"not UTF-8 ({one_line(error, 80)})"))
            return values

    def _open(self, file: OpenFile) -> Any:
        import pyarrow.parquet

        try:
            parquet = pyarrow.parquet.ParquetFile(file.handle)
            names = parquet.schema_arrow.names
        except Exception as error:  # of many kinds: what a damaged file leads to
            raise BadRecordError(f"not a Parquet file: {one_line(error, 120)}") from None
        for name in self.shape.columns:
            if name not in names:
                raise BadRecordError(f"no column '{name}'; there are: {one_line(', '.join(names), 120)}")
        return parquet

    def _group(self, file: OpenFile, parquet: Any, group: int) -> Any:
        key = (file.path, file.size, file.version, group)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        table = parquet.read_row_group(group, columns=self.shape.columns, use_threads=False)
        with self._lock:
            self._groups[key] = table
            while len(self._groups) > 1 and sum(held.nbytes for held in self._groups.values()) > HELD_BYTES:
                self._groups.popitem(last=False)
        return table

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the rows, from the file's footer."""
        try:
            total = self._open(file).metadata.num_rows
        except BadRecordError:
            return
        yield from range(1, total + 1)
