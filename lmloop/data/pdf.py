"""PDFs of this machine as a source: files in strict order of their names, each one cut into chunks of its text."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from lmloop.confined import CannotStart, Confined, ConfinedError
from lmloop.data.files import Files
from lmloop.data.listing import PDF_ENDINGS, OpenFile
from lmloop.data.quarantine import Quarantine
from lmloop.data.reader import BadRow, KeepNumber, Place, Row
from lmloop.data.source import Notify, SourceError, one_line
from lmloop.preset.sources import FilesSource, PdfSource

MEMORY_BYTES = 1 << 30
"""What reading a PDF may take; 400 pages of text take 30 MB."""

SECONDS, BYTES_PER_SECOND, MOST_SECONDS = 10.0, 4 << 20, 60.0
"""Computing time for a file: so many seconds, one more for each so many bytes, so many at the most. Text is read at 500
pages a second."""

CACHE_BYTES = 64 << 20
"""Texts that are kept, compressed to a third: those of some 300 books. Of a larger collection in random order
(`data.shuffle`) a file is parsed again for each of its chunks."""


def open_pdfs(name: str, section: PdfSource, quarantine: Quarantine, notify: Notify) -> Files:
    """The source that a preset's section describes. Nothing is read yet."""
    files = FilesSource(path=section.path, exclude=section.exclude)
    return Files(name, files, quarantine, notify, reader=PdfReader(section.chunk_size), endings=PDF_ENDINGS)


@dataclass(frozen=True)
class Parsed:
    """What a file gave: its chunks, and what is wrong with it (page 0: with all of it)."""

    chunks: list[str]
    page: int
    fault: str


class PdfReader:
    """A PDF is cut into chunks, in a process of its own. A place is the number of chunks before it, as its last part."""

    rows_are_parents = False

    def __init__(self, chunk_size: int) -> None:
        self.mark = "@" if chunk_size else ""
        self._chunk_size = chunk_size
        self._worker = Confined("lmloop.data.pdf_worker:chunks_of", memory_bytes=MEMORY_BYTES)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._cached_bytes = 0

    def rows(self, file: OpenFile, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Chunks from `start` on; first what is wrong with the file, if that was not said on the way to `start`."""
        parsed = self._parsed(file)
        before = start[2]
        if parsed.fault and (before == 0 or not parsed.chunks):
            yield BadRow(parsed.page, parsed.fault, "", start)
        count = len(parsed.chunks)
        for number, text in enumerate(parsed.chunks[before:], before + 1):
            yield Row(number, text, (0, 0, number), number / count)

    def numbers(self, file: OpenFile) -> Iterator[int]:
        """The file is the parent of all of its chunks."""
        yield from [1] if file.size else []

    def _parsed(self, file: OpenFile) -> Parsed:
        """The file's text; each version of a file is parsed once while it is kept. SourceError: nothing can be parsed."""
        key = (file.path, file.size, file.version)
        with self._lock:
            content = self._cache.get(key)
            if content is not None:
                self._cache.move_to_end(key)
                return Parsed(*json.loads(zlib.decompress(content)))
            parsed = self._parse(file)
            content = zlib.compress(json.dumps([parsed.chunks, parsed.page, parsed.fault]).encode("ascii"), 1)
            self._cache[key] = content
            self._cached_bytes += len(content)
            while self._cached_bytes > CACHE_BYTES:
                _, forgotten = self._cache.popitem(last=False)
                self._cached_bytes -= len(forgotten)
            return parsed

    def _parse(self, file: OpenFile) -> Parsed:
        seconds = min(SECONDS + file.size // BYTES_PER_SECOND, MOST_SECONDS)
        try:
            return Parsed(**self._worker.call(os.path.abspath(file.path), self._chunk_size, timeout_s=seconds))
        except CannotStart as error:
            raise SourceError(f"PDFs cannot be read on this machine: {one_line(error)}") from None
        except ConfinedError as error:
            return Parsed([], 0, f"cannot be read: {one_line(error)}")
        except ValueError as error:
            return Parsed([], 0, one_line(error))
