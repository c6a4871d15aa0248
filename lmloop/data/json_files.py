"""JSONL and JSON files: records on lines of their own, in an array, or one after the other."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from lmloop.data.json_stream import RecordStream
from lmloop.data.listing import OpenFile, lines, skip_line_breaks
from lmloop.data.reader import START, BadRow, KeepNumber, Place, Row, encoding_fault, excerpt
from lmloop.data.records import BadRecordError, Content, NotJsonError, decode, require_few_values
from lmloop.data.shape import Shape

MAX_LINE_BYTES = 32 << 20
"""A longer line is left out: it would have to be held in memory several times."""


class JsonLines:
    """A record on each line; a bad line is one bad row. A place is (bytes, lines, 0) before it."""

    mark = "#"
    rows_are_parents = True

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Records from `start` on; where that is not the beginning of a line (the file was changed), from the next one."""
        fault = encoding_fault(file)
        if fault:
            yield BadRow(0, fault, "", (file.size, 0, 0))
            return
        for number, line, length, offset in self._lines(file, start):
            if keep is not None and not keep(number):
                continue
            after = (offset, number, 0)
            try:
                content = self._content(line, length)
            except BadRecordError as error:
                torn = isinstance(error, NotJsonError) and error.at_end and not line.endswith(b"\n")
                reason = "torn last line" if torn else str(error)
                yield BadRow(number, reason, excerpt(line.removeprefix(codecs.BOM_UTF8)), after)
                continue
            share = min(offset / max(file.size, 1), 1.0)
            yield Row(number, content.text, after, share, messages=content.messages, pair=content.pair)

    def _lines(self, file: OpenFile, start: Place) -> Iterator[tuple[int, bytes, int, int]]:
        """Number, content, length and end of each line that is not blank."""
        offset, number, _ = start
        file.handle.seek(max(offset - 1, 0))
        if offset > 0:
            for line, length in lines(file.handle, MAX_LINE_BYTES):  # the line break before, or the rest of a line
                offset += length - 1
                number += line != b"\n"
                break
        for line, length in lines(file.handle, MAX_LINE_BYTES):
            offset += length
            number += 1
            if line == b"\n":
                more = skip_line_breaks(file.handle)
                offset, number = offset + more, number + more
            elif not line.isspace():
                yield number, line, length, offset

    def _content(self, line: bytes, length: int) -> Content:
        if length > len(line):
            raise BadRecordError(f"line of {length >> 20} MB is too long")
        if line.startswith(codecs.BOM_UTF8):
            line = line[len(codecs.BOM_UTF8) :]
        try:
            content = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise BadRecordError(f"not UTF-8 (byte 0x{line[error.start]:02x})") from None
        if not content:
            return Content("")
        if "\0" in content:
            raise BadRecordError("not text (NUL bytes)")
        require_few_values(content)
        record, end = decode(content)
        if end != len(content):
            raise BadRecordError(f"not JSON: more text after the record, at character {end + 1}")
        return self.shape.content(record)

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the lines that are not blank."""
        if not encoding_fault(file):
            yield from (number for number, *_ in self._lines(file, START))


class Json:
    """A file that is an array of records, records one after the other, or in truth JSONL.

    A place is (bytes, records, line breaks) before it; of JSONL as in `JsonLines`.
    """

    mark = "#"
    rows_are_parents = True

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.lines = JsonLines(shape)

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Records from `start` on."""
        fault = encoding_fault(file)
        if fault:
            yield BadRow(0, fault, "", (file.size, 0, 0))
            return
        if self._is_lines(file):
            yield from self.lines.rows(file, start, keep)
            return
        for record in RecordStream(file.handle, start):
            if keep is not None and not keep(record.number):
                continue
            try:
                if record.fault is not None:
                    raise record.fault
                content = self.shape.content(record.value)
            except BadRecordError as error:
                yield BadRow(record.number, str(error), excerpt(record.beginning), record.after)
                continue
            share = min(record.after[0] / max(file.size, 1), 1.0)
            yield Row(record.number, content.text, record.after, share, messages=content.messages, pair=content.pair)

    def _is_lines(self, file: OpenFile) -> bool:
        """Whether the file's first or second line is a record by itself, and not the beginning of an array."""
        file.handle.seek(0)
        tried = 0
        for line, length in lines(file.handle, MAX_LINE_BYTES):
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if not content:
                continue
            if tried == 0 and content.startswith(b"["):
                return False
            tried += 1
            try:
                text = content.decode("utf-8")
                require_few_values(text)
                found = length == len(line) and content.startswith((b"{", b'"')) and decode(text)[1] == len(text)
            except ValueError:
                found = False
            if found or tried == 2:
                return found
        return False

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the records. In an array they are only known by parsing it."""
        if encoding_fault(file):
            return
        if self._is_lines(file):
            yield from self.lines.numbers(file)
            return
        for record in RecordStream(file.handle, START):
            if record.fault is None:
                yield record.number
