"""Records of a JSON file that are not on lines of their own: in an array, or one after the other.

The file is read in blocks and each record parsed when it is complete, so that a file of any size takes little memory, and
what stands before and after a fault is kept: a record that is JSON but cannot be used is passed over to its own end, one
that is not JSON up to the next line that begins as its own did.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lmloop.data.reader import Place
from lmloop.data.records import BadRecordError, NotJsonError, decode, require_few_values

MAX_RECORD_CHARACTERS = 32 << 20
"""A longer record is left out: it would have to be held in memory several times."""

BLOCK_BYTES = 1 << 20
UNFINISHED = 16
"""An error so near the end of what was read may be none when more is read: no literal or escape is longer."""

_BETWEEN = re.compile(r"[ \t\r\n,\ufeff]*")
_TEXT = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_TEXT_OR_BRACKET = re.compile(rf"{_TEXT.pattern}|[\[\]{{}}]", re.DOTALL)
_PLAIN = re.compile(r'[^\s,\[\]{}"]*')
_NOT_UTF8 = re.compile("[\udc80-\udcff]")

_DEPTH = np.zeros(256, dtype=np.int32)
_DEPTH[list(b"[{")] = 1
_DEPTH[list(b"]}")] = -1


class Record(NamedTuple):
    """A record and the place after it. `fault` says why it has no `value`; `beginning` is how it begins."""

    number: int
    value: Any
    fault: BadRecordError | None
    beginning: str
    after: Place


class RecordStream:
    """The records of a file from a place on, which is (bytes, records, line breaks) before it."""

    def __init__(self, handle: BinaryIO, start: Place) -> None:
        self._handle = handle
        self._go_to((0, 0, 0))
        self._is_array = self._next_character() == "["
        self._inside = start[0] > 0 and self._is_array
        if start[0] > 0:
            self._go_to(start)

    # ---- the text ----

    def _go_to(self, place: Place) -> None:
        self._handle.seek(place[0])
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # so that all bytes can be counted
        self._text, self._at, self._ended = "", 0, False
        self._offset, self._number, self._line = place
        self._between = ""

    def _place(self) -> Place:
        return self._offset, self._number, self._line

    def _more(self) -> bool:
        """Drop what was passed and read a block; False at the end of the file."""
        if self._ended:
            return False
        data = self._handle.read(BLOCK_BYTES)
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0
        return True

    def _pass(self, end: int) -> str:
        """Go on to `end` in the text; returns what was passed."""
        passed = self._text[self._at : end]
        self._offset += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self._line += passed.count("\n")
        self._at = end
        return passed

    def _next_character(self) -> str:
        """Go on to the next record, bracket or fault; "" at the end. `_between` is the end of what was passed."""
        self._between = ""
        while True:
            found = _BETWEEN.match(self._text, self._at)
            assert found is not None, self._at
            self._between = (self._between + self._pass(found.end()))[-UNFINISHED:]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    # ---- the records ----

    def __iter__(self) -> Iterator[Record]:
        while character := self._next_character():
            if self._is_array and character == ("]" if self._inside else "["):
                self._inside = not self._inside
                self._pass(self._at + 1)
            elif self._is_array and not self._inside:
                yield self._fault("more text after the array; it is not read")
                return
            else:
                yield self._record()
        if self._inside:
            yield self._fault("the file breaks off: its array is not closed")

    def _fault(self, reason: str) -> Record:
        beginning = self._text[self._at : self._at + UNFINISHED]
        return Record(self._number + 1, None, BadRecordError(reason), beginning, self._place())

    def _record(self) -> Record:
        size = BLOCK_BYTES  # of the part in which the record is looked for: it doubles until the record is whole
        while True:
            while len(self._text) - self._at < size and self._more():
                pass
            part, start = self._text, self._at
            if len(part) - start > max(size, 2 * BLOCK_BYTES):
                part, start = part[start : start + size], 0
            is_all = self._ended and len(part) - start == len(self._text) - self._at
            try:
                if size > BLOCK_BYTES:
                    require_few_values(part)
                value, end = decode(part, start)
            except NotJsonError as error:
                if is_all or (error.position < len(part) - UNFINISHED and not error.at_end):
                    return self._passed_over(error, self._to_similar_line)
            except BadRecordError as error:
                return self._passed_over(error, self._to_end_of_record)
            else:
                if is_all or end < len(part):  # else a number may go on
                    return self._whole(value, self._at + end - start)
            size *= 2
            if size > 2 * MAX_RECORD_CHARACTERS:
                error = BadRecordError(f"a record of more than {MAX_RECORD_CHARACTERS >> 20} MB is too long")
                return self._passed_over(error, self._to_end_of_record)

    def _whole(self, value: Any, end: int) -> Record:
        said = self._pass(end)
        self._number += 1
        fault = None
        if not said.isascii() and (found := _NOT_UTF8.search(said)):
            fault = BadRecordError(f"not UTF-8 (byte 0x{ord(found[0]) - 0xDC00:02x}); convert the file to UTF-8")
        return Record(self._number, value, fault, said[:160], self._place())

    # ---- going on after a record that cannot be read ----

    def _passed_over(self, error: BadRecordError, go_on: Callable[[], bool]) -> Record:
        beginning, line = self._text[self._at : self._at + 160], self._line + 1
        rest = ""
        if not go_on():
            rest, self._inside = "; nothing after it is read", False
        self._number += 1
        return Record(self._number, None, BadRecordError(f"{error} (line {line}){rest}"), beginning, self._place())

    def _to_similar_line(self) -> bool:
        """Go on to the next line that begins as the record's own. A line break is never within a text of JSON."""
        indent = self._between.rpartition("\n")[2]
        similar = re.compile("\n" + re.escape(indent if indent.isspace() else "") + r"[\[{]")
        self._pass(self._at + 1)
        while True:
            found = similar.search(self._text, self._at)
            self._pass(found.start() if found else max(len(self._text) - UNFINISHED - 1, self._at))
            if found:
                return True
            if not self._more():
                self._pass(len(self._text))
                return False

    def _to_end_of_record(self) -> bool:
        """Go on to where the record's brackets are closed, or its text or number ends."""
        if self._text[self._at] not in '[{"':
            return self._to_end_of_number()
        depth, in_text = 0, False
        while True:
            opening = '"' if in_text else ""
            piece = opening + self._text[self._at : self._at + BLOCK_BYTES]
            if (len(piece) - len(piece.rstrip("\\"))) % 2:
                piece = piece[:-1]  # half of an escape
            outside = _TEXT.sub("", piece + '"')  # where a text goes on beyond the piece, this ends it
            running = depth + np.cumsum(_DEPTH[np.frombuffer(outside.encode("ascii", "replace"), dtype=np.uint8)])
            if (running <= 0).any():
                self._pass(self._at + _end_of_record(piece, depth) - len(opening))
                return True
            depth = int(running[-1]) if len(running) else depth
            in_text = not outside.endswith('"')
            self._pass(self._at + len(piece) - len(opening))
            if len(self._text) - self._at <= 1 and not self._more():
                self._pass(len(self._text))
                return False

    def _to_end_of_number(self) -> bool:
        while True:
            found = _PLAIN.match(self._text, self._at)
            assert found is not None, self._at
            self._pass(found.end())
            if self._at < len(self._text) or not self._more():
                return True


def _end_of_record(piece: str, depth: int) -> int:
    """Where the brackets that are open, `depth` of them, or the text that begins here are closed."""
    for found in _TEXT_OR_BRACKET.finditer(piece):
        depth += int(_DEPTH[ord(piece[found.start()])])
        if depth <= 0:
            return found.end()
    raise AssertionError((depth, piece[:100]))
