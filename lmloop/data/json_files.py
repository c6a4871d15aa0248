"""JSONL and JSON files: records on lines of their own, in an array, or one after the other."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from lmloop.data.listing import OpenFile, lines
from lmloop.data.reader import MAX_WHOLE_BYTES, START, BadRow, KeepNumber, Place, Row, excerpt
from lmloop.data.records import BadRecordError, RecordShape, decode

MAX_LINE_BYTES = 64 << 20
_SPACE = re.compile(r"[\s,]*")


class JsonLines:
    """A record on each line; a bad line is one bad row. A place is (bytes, lines, 0) before it."""

    mark = "#"
    rows_are_parents = True

    def __init__(self, shape: RecordShape) -> None:
        self.shape = shape

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Records from `start` on; where that is not the beginning of a line (the file was changed), from the next one."""
        for number, line, length, offset in self._lines(file, start):
            if keep is not None and not keep(number):
                continue
            after = (offset, number, 0)
            try:
                text = self._text(line, length)
            except BadRecordError as error:
                torn = not line.endswith(b"\n") and length == len(line) and "not JSON" in str(error)
                reason = "torn last line" if torn else str(error)
                yield BadRow(number, reason, excerpt(line.removeprefix(codecs.BOM_UTF8)), after)
                continue
            if text and not text.isspace():
                yield Row(number, text, after, min(offset / max(file.size, 1), 1.0))

    def _lines(self, file: OpenFile, start: Place) -> Iterator[tuple[int, bytes, int, int]]:
        """Number, content, length and end of each line that is not blank."""
        offset, number, _ = start
        if offset > 0:
            file.handle.seek(offset - 1)
            for line, length in lines(file.handle, MAX_LINE_BYTES):  # the line break before, or the rest of a line
                offset += length - 1
                number += line != b"\n"
                break
        for line, length in lines(file.handle, MAX_LINE_BYTES):
            offset += length
            number += 1
            if not line.isspace():
                yield number, line, length, offset

    def _text(self, line: bytes, length: int) -> str:
        if length > len(line):
            raise BadRecordError(f"line of {length >> 20} MB is too long")
        if line.startswith(codecs.BOM_UTF8):
            line = line[len(codecs.BOM_UTF8) :]
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadRecordError("UTF-16; convert the file to UTF-8")
        try:
            content = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise BadRecordError(f"not UTF-8 (byte 0x{line[error.start]:02x})") from None
        if not content:
            return ""
        if "\0" in content:
            raise BadRecordError("not text (NUL bytes)")
        record, end = decode(content)
        if end != len(content):
            raise BadRecordError(f"not JSON: more text after the record, at character {end + 1}")
        return self.shape.text(record)

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the lines that are not blank."""
        for number, *_ in self._lines(file, START):
            yield number


class Json:
    """A file that is an array of records, one record, or in truth JSONL.

    The array is read record by record, so that what precedes a fault in it is kept. A place is (characters, records, 0)
    before it; of JSONL as in `JsonLines`.
    """

    mark = "#"
    rows_are_parents = True

    def __init__(self, shape: RecordShape) -> None:
        self.shape = shape
        self.lines = JsonLines(shape)
        self._held: tuple[tuple[str, int, int], str] | None = None

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Records from `start` on."""
        if self._is_lines(file):
            yield from self.lines.rows(file, start, keep)
            return
        try:
            text = self._whole(file)
        except BadRecordError as error:
            yield BadRow(0, str(error), "", (MAX_WHOLE_BYTES, 0, 0))
            return
        for at, number, record in self._records(text, start[0], start[1]):
            if isinstance(record, BadRow):
                yield record
            elif keep is None or keep(number):
                after = (at, number, 0)
                try:
                    content = self.shape.text(record)
                except BadRecordError as error:
                    yield BadRow(number, str(error), excerpt(str(record)), after)
                    continue
                if content and not content.isspace():
                    yield Row(number, content, after, at / len(text))

    def _records(self, text: str, at: int, number: int) -> Iterator[tuple[int, int, object]]:
        """(end, number, record or BadRow) for each record from the character `at` on."""
        array = text.lstrip("\ufeff \t\r\n").startswith("[")
        if at == 0 and array:
            at = text.index("[") + 1
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if at >= len(text):
                if array and number:
                    yield at, number, BadRow(number + 1, "the file breaks off: its array is not closed", "", (at, number, 0))
                return
            if array and text[at] == "]":
                return
            try:
                record, end = decode(text, at)
            except BadRecordError as error:
                after = (len(text), number, 0)
                reason = f"{error}; nothing after it is read (line {text.count(chr(10), 0, at) + 1})"
                yield len(text), number, BadRow(number + 1, reason, excerpt(text[at : at + 160]), after)
                return
            number += 1
            at = end
            yield at, number, record

    def _is_lines(self, file: OpenFile) -> bool:
        """Whether the file's first or second line is a record by itself, and not the beginning of an array."""
        file.handle.seek(0)
        tried = 0
        found = False
        for line, length in lines(file.handle, MAX_LINE_BYTES):
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if not content:
                continue
            if tried == 0 and content.startswith(b"["):
                break
            tried += 1
            try:
                found = length == len(line) and decode(content.decode("utf-8"))[1] == len(content.decode("utf-8"))
            except ValueError:
                found = False
            if tried == 2 or (found and content.startswith((b"{", b'"'))):
                found = found and content.startswith((b"{", b'"'))
                break
        file.handle.seek(0)
        return found

    def _whole(self, file: OpenFile) -> str:
        key = (file.path, file.size, file.version)
        held = self._held  # read once: another thread may replace it
        if held is not None and held[0] == key:
            return held[1]
        if file.size > MAX_WHOLE_BYTES:
            raise BadRecordError(f"{file.size / 1e9:.1f} GB are too much for one array: convert the file to JSONL")
        try:
            text = file.handle.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRecordError(f"not UTF-8 (byte 0x{error.object[error.start]:02x} at byte {error.start})") from None
        self._held = (key, text)
        return text

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """Numbers of the records. In an array they are only known by parsing it."""
        if self._is_lines(file):
            yield from self.lines.numbers(file)
            return
        try:
            text = self._whole(file)
        except BadRecordError:
            return
        for _, number, record in self._records(text, 0, 0):
            if not isinstance(record, BadRow):
                yield number
