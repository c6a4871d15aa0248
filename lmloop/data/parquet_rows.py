"""Decoding Parquet within bounds: a few kilobytes of it can be unpacked into any number of gigabytes.

A row group is decoded batch by batch, in batches so small that they fit in memory whatever the values are, and only as long
as what comes out is in proportion to what is on the disk. The sizes that this relies on are those that the file itself
states: a file that lies can still ask for all memory, so it is read where memory is limited (`parquet_worker.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from lmloop.data.source import one_line

MAX_RATIO = 200
"""Text of which each byte on the disk gives so many is no text: zstd makes a fifth to a tenth of prose."""

FREE_BYTES = 32 << 20
"""So much may come out of any file."""

BATCH_BYTES = 16 << 20
MAX_BATCH_BYTES = 256 << 20
MAX_BATCH_ROWS = 1024
MAX_ROW_BYTES = 32 << 20

VALUE_BYTES = 16
"""What a value in memory takes at the least, however it is stored."""

ROW_BYTES = 256
"""What a row counts beside its content: without any content there could be thousands of millions of rows."""

_BUFFER_BYTES = 1 << 20
_MAX_ITEMS = 250_000
"""Columns, or row groups, in a footer; each takes a kilobyte of memory."""


class NotReadableError(ValueError):
    """Why a file or what is left of a row group cannot be read: one line."""


class ParquetRows:
    """The rows of one file."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        """NotReadableError where it is no Parquet file. `size` is the file's in bytes; 0 where it is not known."""
        import pyarrow.parquet

        self._handle = handle
        try:
            # Without `pre_buffer` a column is read a buffer at a time, and by the thread that asks for it.
            self._file = pyarrow.parquet.ParquetFile(
                handle, buffer_size=_BUFFER_BYTES, pre_buffer=False, thrift_container_size_limit=_MAX_ITEMS
            )
            self.names: list[str] = self._file.schema_arrow.names
            metadata = self._file.metadata
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            self.group_rows: list[int] = [group.num_rows for group in groups]
            stored = [group.column(index).total_compressed_size for group in groups for index in range(group.num_columns)]
        except Exception as error:  # of many kinds: what a damaged file leads to
            raise NotReadableError(f"not a Parquet file: {one_line(error, 120)}") from None
        if min(stored, default=0) < 0 or min(self.group_rows, default=0) < 0 or (size and sum(stored) > size):
            raise NotReadableError("not a Parquet file: the sizes that it states cannot be true")

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        """The rows of a row group as record batches of the same sizes each time. NotReadableError from where that fails."""
        rows, done = self.group_rows[group], 0
        try:
            left, size = self._bounds(group, columns)
            batches = self._file.iter_batches(size, row_groups=[group], columns=list(columns), use_threads=False)
            while (batch := next(batches, None)) is not None:
                left -= batch.nbytes + ROW_BYTES * batch.num_rows
                if left < 0 or batch.nbytes > MAX_BATCH_BYTES:
                    raise NotReadableError(f"it is more than {MAX_RATIO} times as large as on the disk")
                done += batch.num_rows
                yield batch
        except MemoryError:
            raise
        except Exception as error:  # of many kinds: what a damaged file leads to
            after = f" after {done}" if done else ""
            raise NotReadableError(f"row group of {rows} rows cannot be decoded{after}: {one_line(error, 120)}") from None
        if done != rows:
            raise NotReadableError(f"row group of {rows} rows has {done}")

    def _bounds(self, group: int, columns: Sequence[str]) -> tuple[int, int]:
        """How many bytes may come out of a row group, and how many of its rows can be decoded at a time."""
        metadata, schema = self._file.metadata, self._file.schema
        chosen = [index for index in range(len(schema)) if schema.column(index).path.split(".")[0] in columns]
        chunks = [metadata.row_group(group).column(index) for index in chosen]
        stored = sum(chunk.total_compressed_size for chunk in chunks)
        rows = max(self.group_rows[group], 1)
        average = sum(max(chunk.total_uncompressed_size, chunk.num_values * VALUE_BYTES) for chunk in chunks) // rows
        largest = max([average, *(self._largest_repeated(chunk) for chunk in chunks)])
        size = min(max(BATCH_BYTES // max(largest, 1), 1), MAX_BATCH_ROWS)
        return FREE_BYTES // max(metadata.num_row_groups, 1) + MAX_RATIO * stored, size

    def _largest_repeated(self, chunk: Any) -> int:
        """How large a value can be that stands there once and is used any number of times."""
        if "DELTA_BYTE_ARRAY" in chunk.encodings:  # each value says how much of the last one it begins with
            return chunk.total_uncompressed_size
        if not chunk.has_dictionary_page:
            return 0
        self._handle.seek(chunk.dictionary_page_offset)
        return _page_bytes(self._handle.read(32))


def values(rows: Any) -> list[tuple[Any, str | None]]:
    """Of each row of a record batch its fields by name, or None and why they cannot be read.

    What JSON cannot say is no text and in no conversation: bytes, times, decimal numbers.
    """
    if rows.nbytes > MAX_ROW_BYTES and rows.num_rows == 1:
        return [(None, f"a row of {rows.nbytes >> 20} MB is too long")]
    try:
        found = rows.to_pylist()
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        if rows.num_rows > 1:
            return [value for at in range(rows.num_rows) for value in values(rows.slice(at, 1))]
        return [(None, f"not UTF-8 ({one_line(error, 80)})")]
    return [_with_reason(row) for row in found]


def _with_reason(row: dict[str, Any]) -> tuple[Any, str | None]:
    for name, part in row.items():
        odd = None if isinstance(part, str) else _odd(part)
        if odd is not None:
            return None, f"field '{name}' is not text but {odd}"
    return row, None


def _odd(value: Any) -> str | None:
    """What in a value JSON cannot say."""
    if value is None or isinstance(value, str | bool | int | float):
        return None
    if isinstance(value, dict):
        return next((odd for part in value.values() if (odd := _odd(part)) is not None), None)
    if isinstance(value, list):
        return next((odd for part in value if (odd := _odd(part)) is not None), None)
    return "bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"


def _page_bytes(header: bytes) -> int:
    """Unpacked size that a page's header states: the second of its fields, in Thrift's compact protocol."""
    at, fields = 0, []
    while len(fields) < 2:
        if header[at] != 0x15:  # the next field, a whole number
            raise ValueError("a page header that makes no sense")
        at, shift, value = at + 1, 0, 0
        while True:
            value |= (header[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if header[at - 1] < 0x80:
                break
        fields.append((value >> 1) ^ -(value & 1))
    return max(fields[1], 0)
