"""Files of this machine as a source: a file or a folder, in strict order of their names."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lmloop.data.document import Document, Position
from lmloop.data.json_files import Json, JsonLines
from lmloop.data.listing import (
    PDF_ENDINGS,
    RECORD_ENDINGS,
    TEXT_ENDINGS,
    Listed,
    absolute,
    excluder,
    listing_mark,
    matcher,
    open_regular,
    printable,
    walk,
)
from lmloop.data.parents import RowIds
from lmloop.data.parquet_files import Parquet
from lmloop.data.quarantine import Quarantine
from lmloop.data.reader import START, BadRow, KeepNumber, Place, Reader, Row
from lmloop.data.shape import shape_of
from lmloop.data.source import Keep, Notify, SourceError, one_line
from lmloop.data.text_files import PIECE_CHARACTERS, WHOLE_BYTES, ChunkedText, WholeText
from lmloop.preset.sources import FilesSource

EXACT_BYTES = 32 << 20
"""Records of a source up to this size are parsed to know which of them are documents; in a larger one every row that is
not blank counts as a parent, which parsing would prove wrong for bad rows only."""

EXACT_FILES = 64
"""Files whose reader keeps what it has read (PDFs) are read to know which of them hold text, if there are no more than so
many: of few files a split must not put all that are good on one side."""


class Files:
    """Documents of the files at a path: sorted by name, each file from its beginning.

    A position names the file and the place in it, so files may come, go and change between a stop and a resume: reading
    goes on where the order says, and a notice says what was noticed.
    """

    def __init__(
        self,
        name: str,
        section: FilesSource,
        quarantine: Quarantine,
        notify: Notify,
        *,
        reader: Reader | None = None,
        endings: tuple[str, ...] = (),
    ) -> None:
        """ValueError when a pattern of the preset cannot be understood. Nothing is read yet.

        reader: of every file, where the section does not choose it; `endings` then are those of its files in a folder.
        """
        self.name = name
        self.section = section
        self._quarantine = quarantine
        self._notify = notify
        self._root = absolute(section.path)
        self._excluded = excluder(section.exclude)
        self._only_reader, self._endings = reader, endings
        self._wanted, self._hidden = self._pattern()
        shape = shape_of(section, section.data_type)
        text: Reader = ChunkedText(section.chunk_size) if section.chunk_size else WholeText()
        jsonl, json, parquet = JsonLines(shape), Json(shape), Parquet(shape)
        self._records: dict[str, Reader] = {".json": json, ".jsonl": jsonl, ".ndjson": jsonl, ".parquet": parquet}
        self._text, self._other = text, text if section.data_type in ("auto", "text") else json
        self._pieces = ChunkedText(PIECE_CHARACTERS)
        self._parents: tuple[int, RowIds] | None = None

    def _pattern(self) -> tuple[Callable[[str], bool], bool]:
        """Which names are wanted, and whether hidden folders are entered."""
        pattern = self.section.file_pattern
        if pattern is not None:
            return matcher(pattern), pattern.startswith(".") or "/." in pattern
        by_type = {"auto": TEXT_ENDINGS + RECORD_ENDINGS, "text": TEXT_ENDINGS}
        endings = self._endings or by_type.get(self.section.data_type, RECORD_ENDINGS)
        return lambda name: name.lower().endswith(endings) and not name.rsplit("/", 1)[-1].startswith("."), False

    def _reader(self, file: Listed) -> Reader:
        if self._only_reader is not None:
            return self._only_reader
        is_text = self.section.data_type == "text"
        reader = self._text if is_text else self._records.get(os.path.splitext(file.name)[1].lower(), self._other)
        return self._pieces if isinstance(reader, WholeText) and file.size > WHOLE_BYTES else reader

    def files(self) -> list[Listed]:
        """What is there now. SourceError when that is nothing."""
        path, expected = self._root, self.section.is_directory
        try:
            is_folder = path.is_dir()
            if expected is not None and path.exists() and expected != is_folder:
                is_not = "a folder, but is_directory is false" if is_folder else "not a folder, but is_directory is true"
                raise SourceError(f"source '{self.name}': {path} is {is_not}: correct one of them")
            if not is_folder:
                return [self._single(path)]
            found = walk(str(path), self._wanted, self._excluded, self._hidden, self._passed_over)
        except (OSError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"source '{self.name}': {path} cannot be read ({self._why(error)}): correct data.sources"
            ) from None
        if not found:
            raise SourceError(f"source '{self.name}': no file in {path} {self._nothing_found(path)}")
        return found

    def _passed_over(self, folder: str) -> None:
        self._notify(f"source '{self.name}': what runs have written is left out ({folder})")

    def _nothing_found(self, folder: Path) -> str:
        """What a folder lacks, and what to do."""
        pattern = self.section.file_pattern
        if pattern:
            deeper = "" if "/" in pattern else "; '*' does not look into folders, '**/*' does"
            return f"matches '{pattern}': correct path or file_pattern{deeper}"
        if self._endings:
            return f"ends in {', '.join(self._endings)}: put some there or correct path"
        kinds = f"is of a known kind ({', '.join(TEXT_ENDINGS + RECORD_ENDINGS)})"
        if walk(str(folder), lambda name: name.lower().endswith(PDF_ENDINGS), self._excluded, False):
            return f"{kinds}: PDFs are read by a source of type 'pdf'"
        return f"{kinds}: correct path or file_pattern"

    def _single(self, path: Path) -> Listed:
        if not path.exists():
            raise SourceError(
                f"source '{self.name}': there is no file or folder {path}: make it, or correct its path in data.sources"
            )
        if not path.is_file():
            raise SourceError(
                f"source '{self.name}': {path} is neither a file nor a folder: correct its path in data.sources"
            )
        if self._only_reader is None and path.name.lower().endswith(PDF_ENDINGS):
            raise SourceError(f"source '{self.name}': {path} is a PDF: write a source of type 'pdf'")
        return Listed(printable(path.name), str(path), path.stat().st_size)

    @staticmethod
    def _why(error: Exception) -> str:
        return one_line(getattr(error, "strerror", None) or error)

    def parents(self) -> Sequence[str]:
        """Files that are documents, and records.

        Texts are not read; records are parsed up to EXACT_BYTES in total, and up to EXACT_FILES of a kind of their own.
        """
        files = self.files()
        mark = listing_mark(files)
        if self._parents is not None and self._parents[0] == mark:
            return self._parents[1]
        exact = sum(file.size for file in files if self._reader(file).rows_are_parents) <= EXACT_BYTES
        parents = RowIds()
        for file in files:
            reader = self._reader(file)
            if not reader.rows_are_parents:
                is_read = reader is self._only_reader and len(files) <= EXACT_FILES
                has_text = not is_read or any(isinstance(row, Row) for row in self._rows(file, reader, START, None))
                if file.size and not file.problem and has_text:
                    parents.add(file.name)
                continue
            rows = (row.number for row in self._rows(file, reader, START, None) if isinstance(row, Row))
            parents.add_rows(f"{file.name}{reader.mark}", rows if exact else self._numbers(file, reader))
        self._parents = (mark, parents)
        return parents

    def _numbers(self, file: Listed, reader: Reader) -> Iterator[int]:
        try:
            opened = open_regular(file)
            with opened.handle:
                yield from reader.numbers(opened)
        except OSError:
            return  # `read` says so

    def _rows(self, file: Listed, reader: Reader, start: Place, keep: KeepNumber | None) -> Iterator[Row | BadRow]:
        """Rows of one file; a file that cannot be opened or read is a bad row."""
        if file.problem:
            yield BadRow(0, file.problem, "", start)
            return
        try:
            opened = open_regular(file)
        except OSError as error:
            yield BadRow(0, f"cannot be opened: {self._why(error)}", "", start)
            return
        with opened.handle:
            rows = reader.rows(opened, start, keep)
            while True:
                try:
                    row = next(rows, None)
                except OSError as error:
                    yield BadRow(0, f"cannot be read: {self._why(error)}", "", start)
                    return
                if row is None:
                    break
                if isinstance(row, Row) and row.is_blank:
                    self._quarantine.blank(self.name, file.name, row.number)
                    continue
                yield row
            if opened.shortened:
                yield BadRow(0, "became shorter while it was read; what is gone is missing", "", start)

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass from `position` to the end."""
        return self.read_where(None, position, epoch)

    def read_where(self, keep: Keep | None, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass over the wanted parents; files with none of them are not opened, records not parsed."""
        files = self.files()
        mark = listing_mark(files)
        first, start = self._resume(files, mark, position)
        good, bad = position.get("rows", (0, 0))
        total = max(sum(file.size for file in files), 1)
        done = sum(file.size for file in files[:first])
        for index in range(first, len(files)):
            file = files[index]
            if self._reader(file) is self._pieces:
                self._notify(
                    f"source '{self.name}': {file.name} ({file.size >> 20} MB) is too large for one document: it is read in "
                    f"pieces of {PIECE_CHARACTERS:,} characters; chunk_size sets another length"
                )
            for row in self._wanted_rows(file, start, keep):
                if isinstance(row, BadRow):
                    bad += 1
                    self.set_aside(file, row, good, bad)
                    continue
                good += row.lines
                yield (
                    self.document(file, row, min((done + row.share * file.size) / total, 1.0)),
                    {"file": file.name, "place": list(row.after), "size": file.size, "listing": mark, "rows": [good, bad]},
                )
            done += file.size
            start = START

    def _wanted_rows(self, file: Listed, start: Place, keep: Keep | None) -> Iterator[Row | BadRow]:
        reader = self._reader(file)
        if keep is None:
            return self._rows(file, reader, start, None)
        if reader.rows_are_parents:
            return self._rows(file, reader, start, lambda number: keep(f"{file.name}{reader.mark}{number}"))
        return self._rows(file, reader, start, None) if keep(file.name) else iter(())

    def document(self, file: Listed, row: Row, progress: float) -> Document:
        """A row as a document."""
        reader = self._reader(file)
        name = f"{file.name}{reader.mark}{row.number}" if reader.mark else file.name
        parent = name if reader.rows_are_parents else file.name
        return Document(name, parent, row.text, progress, row.messages, row.pair)

    def set_aside(self, file: Listed, row: BadRow, good: int, bad: int) -> None:
        """Record a bad row; `good` and `bad` are the pass's counts with it. TooManyBadRows."""
        self._quarantine.bad(self.name, file.name, row.number, row.reason, row.excerpt)
        self._quarantine.check(self.name, good, bad)

    def _resume(self, files: list[Listed], mark: int, position: Position) -> tuple[int, Place]:
        """Index of the file and the place in it where `position` goes on."""
        if "file" not in position:
            if position:  # of a source that was shuffled or split otherwise: the preset was changed
                self._notify(
                    f"source '{self.name}': its saved position does not fit the preset; it is read from the beginning"
                )
            return 0, START
        name = position["file"]
        index = bisect_left([file.name for file in files], name)
        here = files[index] if index < len(files) and files[index].name == name else None
        if here is None:
            self._notify(f"source '{self.name}': {name} is gone since it was last read; reading goes on with the next file")
            return index, START
        if here.size < position["size"]:
            self._notify(
                f"source '{self.name}': {name} has become shorter since it was last read; what is left of it is read"
            )
        elif here.size > position["size"]:
            self._notify(f"source '{self.name}': {name} has grown since it was last read; reading goes on where it was")
        elif mark != position["listing"]:
            self._notify(
                f"source '{self.name}': files were added, removed or changed since it was last read; "
                "reading goes on where it was"
            )
        offset, line, number = position["place"]
        return index, (offset, line, number)

    # ---- random access, for `data.shuffle` ----

    def index(self) -> tuple[list[Listed], int, array[int]]:
        """Where every document is, in order: (files, mark of the listing, entries).

        An entry is five numbers in a row: the file's index, the document's number in it, the place (three) to read it
        from. Each file is read once, except texts of one document each.
        """
        files = self.files()
        entries: array[int] = array("q")
        good = bad = 0
        for at, file in enumerate(files):
            reader = self._reader(file)
            if isinstance(reader, WholeText) and file.size and not file.problem:
                entries.extend((at, 1, *START))
                continue
            before = START
            for row in self._rows(file, reader, START, None):
                if isinstance(row, Row):
                    good += row.lines
                    entries.extend((at, row.number, *before))
                else:
                    bad += 1
                    self.set_aside(file, row, good, bad)
                before = row.after
        return files, listing_mark(files), entries

    def parent_of(self, file: Listed, number: int) -> str:
        """The parent of a document, from what the index says of it."""
        reader = self._reader(file)
        return f"{file.name}{reader.mark}{number}" if reader.rows_are_parents else file.name

    def fetch(self, file: Listed, place: Place) -> tuple[list[BadRow], Row | None]:
        """The first row from a place on, and the bad ones before it."""
        bad: list[BadRow] = []
        for row in self._rows(file, self._reader(file), place, None):
            if isinstance(row, Row):
                return bad, row
            bad.append(row)
        return bad, None
