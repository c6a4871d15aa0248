"""Text and Markdown files: a file is one document, or is cut into chunks.

Lines that are not UTF-8, or hold NUL bytes, are left out; where more than a tenth of a file's lines are such (of a chunked
file: of its first megabyte's), it is not a text at all and is left out as a whole. A byte order mark is dropped, and
carriage returns before a line break are; any other character stays.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from lmloop.data.listing import OpenFile
from lmloop.data.reader import START, BadRow, KeepNumber, Place, Row, encoding_fault, excerpt

WHOLE_BYTES = 32 << 20
"""A larger file is no longer held in memory as one document, which takes up to nine times as much."""

PIECE_CHARACTERS = 4_000_000
"""A file that is too large for one document is cut into chunks of so many."""

BLOCK_BYTES = 1 << 20
"""What is read of a chunked file at a time; then up to the end of the line, if that is as near again."""

MAX_BAD_LINES = 0.1


class Gap(NamedTuple):
    """A bad line: where in the text it was, its bytes and line breaks (0 for a part of a line), its number, what is wrong,
    how it begins."""

    at: int
    size: int
    breaks: int
    line: int
    reason: str
    excerpt: str


class Piece:
    """A piece of a file as text, without its bad lines.

    `text` has the file's own line breaks, so that characters can be counted back into bytes. `gaps` are the bad lines.
    """

    def __init__(self, data: bytes, first_line: int) -> None:
        self.gaps: list[Gap] = []
        self._size = len(data)
        self._lines = data.count(b"\n") + (not data.endswith(b"\n"))
        try:
            if b"\0" not in data:
                self.text = data.decode("utf-8")
                return
        except UnicodeDecodeError:
            pass
        blocks: list[str] = []
        reasons: dict[str, str] = {}
        length, number, at = 0, first_line, 0
        while at < len(data):  # block by block, since a list of all lines takes many times the memory of the lines
            end = data.find(b"\n", min(at + BLOCK_BYTES, len(data))) + 1 or len(data)
            good: list[str] = []
            lines = data[at:end].split(b"\n")
            for line in [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else []):
                reason = _fault(line)
                if reason is None:
                    text = line.decode("utf-8")
                    good.append(text)
                    length += len(text)
                else:
                    said = reasons.setdefault(reason, reason)
                    self.gaps.append(Gap(length, len(line), line.endswith(b"\n"), number, said, excerpt(line)))
                number += 1
            blocks.append("".join(good))
            at = end
        self.text = "".join(blocks)

    def verdict(self, after: Place) -> BadRow | None:
        """The piece as one bad row, where so many of its lines are bad that the others cannot be trusted."""
        if len(self.gaps) <= MAX_BAD_LINES * self._lines or (self._lines == 1 and self._size < BLOCK_BYTES):
            return None
        first = self.gaps[0]
        reason = f"not a text file: {len(self.gaps)} of {self._lines} lines are {first.reason}"
        return BadRow(first.line, reason, first.excerpt, after)


def _fault(line: bytes) -> str | None:
    if b"\0" in line:
        return "not text (NUL bytes)"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte 0x{line[error.start]:02x}); convert the file to UTF-8"
    return None


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n") if "\r" in text else text


class WholeText:
    """A file is one document. It has at most WHOLE_BYTES."""

    mark = ""
    rows_are_parents = False

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """The one row, if `start` is before it."""
        if start != START:
            return
        if file.size > WHOLE_BYTES:  # it was smaller when it was listed
            yield BadRow(0, "is being written to; the next start reads it in pieces", "", (file.size, 0, 1))
            return
        fault = encoding_fault(file)
        if fault:
            yield BadRow(0, fault, "", (file.size, 0, 1))
            return
        file.handle.seek(0)
        data = file.handle.read()
        after = (len(data), 0, 1)
        piece = Piece(data.removeprefix(codecs.BOM_UTF8), 1)
        verdict = piece.verdict(after)
        if verdict is not None:
            yield verdict
            return
        for gap in piece.gaps:
            yield BadRow(gap.line, gap.reason, gap.excerpt, START)
        text = _unix(piece.text)
        yield Row(1, text, after, 1.0, text.count("\n") + 1)

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """One, unless the file is empty."""
        yield from [1] if file.size else []


class ChunkedText:
    """A file is cut into chunks of at most `chunk_size` characters, at a line break or space where one is near.

    A place is (bytes, lines, chunks) before it.
    """

    mark = "@"
    rows_are_parents = False

    def __init__(self, chunk_size: int) -> None:
        assert chunk_size > 0, chunk_size
        self.chunk_size = chunk_size
        self._judged: tuple[tuple[str, int, int], BadRow | None] | None = None

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Chunks from `start` on."""
        offset, line, number = start
        verdict = self._verdict(file)
        if verdict is not None:
            yield verdict
            return
        if offset == 0:
            offset = _go_to_text(file)
            text, gaps = "", deque[Gap]()
        else:
            text, gaps = self._from(file, offset, line)
        at, ended = 0, False
        while True:
            while not ended and len(text) - at <= self.chunk_size:
                data = _block(file)
                ended = not data
                if data:
                    before = text[at:]
                    piece = Piece(data, line + before.count("\n") + sum(gap.breaks for gap in gaps) + 1)
                    gaps = deque(gap._replace(at=gap.at - at) for gap in gaps)
                    gaps.extend(gap._replace(at=len(before) + gap.at) for gap in piece.gaps)
                    text, at = before + piece.text, 0
            end = self._cut(text, at)
            before_chunk = (offset, line, number)  # bad lines are met before the chunk that they were in
            while gaps and gaps[0].at <= end:
                gap = gaps.popleft()
                offset, line = offset + gap.size, line + gap.breaks
                yield BadRow(gap.line, gap.reason, gap.excerpt, before_chunk)
            if end == at:
                return
            chunk = text[at:end]
            breaks = chunk.count("\n")
            offset, line, at = offset + len(chunk.encode("utf-8")), line + breaks, end
            chunk = _unix(chunk)
            if chunk and not chunk.isspace():
                number += 1
                yield Row(number, chunk, (offset, line, number), min(offset / max(file.size, 1), 1.0), breaks + 1)

    def _from(self, file: OpenFile, offset: int, line: int) -> tuple[str, deque[Gap]]:
        """What is left, from `offset` on, of the block in which that is; `line` line breaks are before it."""
        start = _go_to_block(file, offset)
        data = _block(file)
        while data and start + len(data) <= offset:
            start, data = start + len(data), _block(file)
        piece = Piece(data, 0)
        left, gaps, at = offset - start, deque(piece.gaps), 0  # bytes that are not to be read again
        while gaps and (before := len(piece.text[at : gaps[0].at].encode("utf-8"))) < left:
            at = gaps[0].at
            left -= before + gaps.popleft().size
        at += len(piece.text[at : at + max(left, 0)].encode("utf-8")[: max(left, 0)].decode("utf-8", "ignore"))
        passed = piece.gaps[: len(piece.gaps) - len(gaps)]
        first_line = line - piece.text.count("\n", 0, at) - sum(gap.breaks for gap in passed) + 1
        return piece.text[at:], deque(gap._replace(at=max(gap.at - at, 0), line=gap.line + first_line) for gap in gaps)

    def _verdict(self, file: OpenFile) -> BadRow | None:
        """On the whole file, from its beginning: the same wherever reading starts."""
        key = (file.path, file.size, file.version)
        judged = self._judged  # read once: another thread may replace it
        if judged is None or judged[0] != key:
            after = (file.size, 0, 0)
            fault = encoding_fault(file)
            _go_to_text(file)
            verdict = BadRow(0, fault, "", after) if fault else Piece(_block(file), 1).verdict(after)
            judged = self._judged = (key, verdict)
        return judged[1]

    def _cut(self, text: str, at: int) -> int:
        """Where the chunk that begins at `at` ends."""
        end = at + self.chunk_size
        if end >= len(text):
            return len(text)
        near = end - self.chunk_size // 5
        for separator in ("\n", " "):
            found = text.rfind(separator, near, end)
            if found >= 0:
                return found + 1
        return end - 1 if text[end - 1] == "\r" and text[end] == "\n" and end - 1 > at else end

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """The file is the parent of all of its chunks."""
        yield from [1] if file.size else []


# Blocks end where the file alone says, wherever reading began: a bad line is the same one after a resume. Every
# BLOCK_BYTES there is an end: that of the line if it is as near again, else right there, but not within a character.


def _go_to_text(file: OpenFile) -> int:
    """Go to the beginning of the text, which is returned."""
    file.handle.seek(0)
    start = len(codecs.BOM_UTF8) if file.handle.read(3) == codecs.BOM_UTF8 else 0
    file.handle.seek(start)
    return start


def _go_to_block(file: OpenFile, offset: int) -> int:
    """Go to the beginning, which is returned, of a block that is not far before `offset`."""
    boundary = max(offset // BLOCK_BYTES - 1, 0) * BLOCK_BYTES
    if boundary == 0:
        return _go_to_text(file)
    file.handle.seek(boundary - 1)
    if file.handle.read(1) != b"\n":
        _end_block(file, boundary)
    return file.handle.tell()


def _block(file: OpenFile) -> bytes:
    """The next block."""
    start = file.handle.tell()
    boundary = (start // BLOCK_BYTES + 1) * BLOCK_BYTES
    data = file.handle.read(boundary - start)
    if start + len(data) < boundary or data.endswith(b"\n"):
        return data
    return data + _end_block(file, boundary)


def _end_block(file: OpenFile, boundary: int) -> bytes:
    """Read on from a boundary to the block's end."""
    rest = file.handle.readline(BLOCK_BYTES)
    if rest.endswith(b"\n") or len(rest) < BLOCK_BYTES:
        return rest
    count = 0
    while count < 3 and rest[count] & 0xC0 == 0x80:
        count += 1
    file.handle.seek(boundary + count)
    return rest[:count]
