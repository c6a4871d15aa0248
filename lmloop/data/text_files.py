"""Text and Markdown files: a file is one document, or is cut into chunks.

Lines that are not UTF-8, or hold NUL bytes, are left out; where more than a tenth of a file's lines are such (of a chunked
file: of its first megabyte's), it is not a text at all and is left out as a whole. A byte order mark is dropped, and line
breaks become `\\n`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from lmloop.data.listing import OpenFile
from lmloop.data.reader import MAX_WHOLE_BYTES, START, BadRow, KeepNumber, Place, Row, excerpt

BLOCK_BYTES = 1 << 20
"""What is read of a chunked file at a time; then up to the end of the line, if that is as near again."""

MAX_BAD_LINES = 0.1


class Piece:
    """A piece of a file as text, without its bad lines.

    `text` has the file's own line breaks, so that characters can be counted back into bytes. `gaps` are the bad lines:
    (index in `text` where the line was, its bytes, its number, reason, excerpt).
    """

    def __init__(self, data: bytes, first_line: int) -> None:
        self.gaps: list[tuple[int, int, int, str, str]] = []
        self._lines = 0
        if b"\0" not in data:
            try:
                self.text = data.decode("utf-8")
                return
            except UnicodeDecodeError:
                pass
        good: list[str] = []
        length = 0
        raw_lines = data.split(b"\n")
        raw_lines = [line + b"\n" for line in raw_lines[:-1]] + ([raw_lines[-1]] if raw_lines[-1] else [])
        for number, line in enumerate(raw_lines, first_line):
            reason = _fault(line)
            if reason is None:
                text = line.decode("utf-8")
                good.append(text)
                length += len(text)
            else:
                self.gaps.append((length, len(line), number, reason, excerpt(line)))
        self.text = "".join(good)
        self._lines = len(raw_lines)

    def verdict(self, after: Place) -> BadRow | None:
        """The piece as one bad row, where so many of its lines are bad that the others cannot be trusted."""
        if not self.gaps or self._lines < 2 or len(self.gaps) <= MAX_BAD_LINES * self._lines:
            return None
        _, _, number, reason, start = self.gaps[0]
        return BadRow(number, f"not a text file: {len(self.gaps)} of {self._lines} lines are {reason}", start, after)


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


def _whole_file_fault(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16; convert the file to UTF-8"
    return None


class WholeText:
    """A file is one document."""

    mark = ""
    rows_are_parents = False

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """The one row, if `start` is before it."""
        if start != START:
            return
        if file.size > MAX_WHOLE_BYTES:
            size = f"{file.size / 1e9:.1f} GB"
            yield BadRow(0, f"{size} are too much for one document: set chunk_size", "", (file.size, 0, 1))
            return
        data = file.handle.read()
        after = (len(data), 0, 1)
        fault = _whole_file_fault(data)
        if fault:
            yield BadRow(0, fault, excerpt(data), after)
            return
        piece = Piece(data.removeprefix(codecs.BOM_UTF8), 1)
        verdict = piece.verdict(after)
        if verdict is not None:
            yield verdict
            return
        for _, _, number, reason, start_of_line in piece.gaps:
            yield BadRow(number, reason, start_of_line, START)
        text = _unix(piece.text)
        if text and not text.isspace():
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
            file.handle.seek(0)
            offset = len(codecs.BOM_UTF8) if file.handle.read(3) == codecs.BOM_UTF8 else 0
        file.handle.seek(offset)
        text, at, gaps, ended = "", 0, [], False
        while True:
            while not ended and len(text) - at <= self.chunk_size:
                data = self._block(file)
                ended = not data
                if data:
                    before = text[at:]
                    piece = Piece(data, line + before.count("\n") + len(gaps) + 1)
                    gaps = [(index - at, *gap) for index, *gap in gaps]
                    gaps += [(len(before) + index, *gap) for index, *gap in piece.gaps]
                    text, at = before + piece.text, 0
            end = self._cut(text, at)
            before_chunk = (offset, line, number)  # bad lines are met before the chunk that they were in
            while gaps and gaps[0][0] <= end:
                _, size, bad_line, reason, start_of_line = gaps.pop(0)
                offset, line = offset + size, line + 1
                yield BadRow(bad_line, reason, start_of_line, before_chunk)
            if end == at:
                return
            chunk = text[at:end]
            breaks = chunk.count("\n")
            offset, line, at = offset + len(chunk.encode("utf-8")), line + breaks, end
            chunk = _unix(chunk)
            if chunk and not chunk.isspace():
                number += 1
                yield Row(number, chunk, (offset, line, number), min(offset / max(file.size, 1), 1.0), breaks + 1)

    def _verdict(self, file: OpenFile) -> BadRow | None:
        """On the whole file, from its beginning: the same wherever reading starts."""
        key = (file.path, file.size, file.version)
        judged = self._judged  # read once: another thread may replace it
        if judged is None or judged[0] != key:
            file.handle.seek(0)
            head, after = self._block(file), (file.size, 0, 0)
            fault = _whole_file_fault(head)
            verdict = BadRow(0, fault, excerpt(head), after) if fault else Piece(head, 1).verdict(after)
            judged = self._judged = (key, verdict)
        return judged[1]

    def _block(self, file: OpenFile) -> bytes:
        data = file.handle.read(BLOCK_BYTES)
        if len(data) == BLOCK_BYTES and not data.endswith(b"\n"):
            data += file.handle.readline(BLOCK_BYTES)
        if not data.endswith(b"\n"):  # a line of megabytes is cut too, but not within a character
            for _ in range(3):
                following = file.handle.peek(1)[:1]  # type: ignore[attr-defined]
                if not following or following[0] & 0xC0 != 0x80:
                    break
                data += file.handle.read(1)
        return data

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
