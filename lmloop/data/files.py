"""Files of this machine as a source: a file or a folder, in strict order of their names."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path

from lmloop.data.document import Document, Position
from lmloop.data.json_files import Json, JsonLines
from lmloop.data.listing import (
    RECORD_ENDINGS,
    TEXT_ENDINGS,
    Listed,
    absolute,
    excluder,
    listing_mark,
    matcher,
    open_regular,
    walk,
)
from lmloop.data.parquet_files import Parquet
from lmloop.data.quarantine import Quarantine
from lmloop.data.reader import START, BadRow, KeepNumber, Place, Reader, Row
from lmloop.data.records import RecordShape
from lmloop.data.source import Keep, Notify, SourceError, one_line
from lmloop.data.text_files import ChunkedText, WholeText
from lmloop.preset.sources import FilesSource

EXACT_BYTES = 32 << 20
"""Records of a source up to this size are parsed to know which of them are documents; in a larger one every row that is
not blank counts as a parent, which parsing would prove wrong for bad rows only."""


class Files:
    """Documents of the files at a path: sorted by name, each file from its beginning.

    A position names the file and the place in it, so files may come, go and change between a stop and a resume: reading
    goes on where the order says, and a notice says what was noticed.
    """

    def __init__(self, name: str, section: FilesSource, quarantine: Quarantine, notify: Notify) -> None:
        """ValueError when a pattern of the preset cannot be understood. Nothing is read yet."""
        self.name = name
        self.section = section
        self._quarantine = quarantine
        self._notify = notify
        self._root = absolute(section.path)
        self._excluded = excluder(section.exclude)
        self._wanted, self._hidden = self._pattern()
        shape = RecordShape.of(section)
        text: Reader = ChunkedText(section.chunk_size) if section.chunk_size else WholeText()
        jsonl, json, parquet = JsonLines(shape), Json(shape), Parquet(shape)
        self._records: dict[str, Reader] = {".json": json, ".jsonl": jsonl, ".ndjson": jsonl, ".parquet": parquet}
        self._text, self._other = text, json if section.data_type == "json" else text
        self._parents: tuple[int, list[str]] | None = None

    def _pattern(self) -> tuple[Callable[[str], bool], bool]:
        """Which names are wanted, and whether hidden folders are entered."""
        pattern = self.section.file_pattern
        if pattern is not None:
            return matcher(pattern), pattern.startswith(".") or "/." in pattern
        endings = {"auto": TEXT_ENDINGS + RECORD_ENDINGS, "text": TEXT_ENDINGS, "json": RECORD_ENDINGS}[
            self.section.data_type
        ]
        return lambda name: name.lower().endswith(endings) and not name.rsplit("/", 1)[-1].startswith("."), False

    def _reader(self, file: Listed) -> Reader:
        if self.section.data_type == "text":
            return self._text
        return self._records.get(Path(file.name).suffix.lower(), self._other)

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
            found = walk(str(path), self._wanted, self._excluded, self._hidden)
        except (OSError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"source '{self.name}': {path} cannot be read ({self._why(error)}): correct data.sources"
            ) from None
        if not found:
            pattern = self.section.file_pattern
            kinds = f"matches '{pattern}'" if pattern else f"is of a known kind ({', '.join(TEXT_ENDINGS + RECORD_ENDINGS)})"
            deeper = "; '*' does not look into folders, '**/*' does" if pattern and "/" not in pattern else ""
            raise SourceError(f"source '{self.name}': no file in {path} {kinds}: correct path or file_pattern{deeper}")
        return found

    def _single(self, path: Path) -> Listed:
        if not path.exists():
            raise SourceError(f"source '{self.name}': there is no file or folder {path}: correct its path in data.sources")
        if not path.is_file():
            raise SourceError(
                f"source '{self.name}': {path} is neither a file nor a folder: correct its path in data.sources"
            )
        return Listed(path.name, str(path), path.stat().st_size)

    @staticmethod
    def _why(error: Exception) -> str:
        return one_line(getattr(error, "strerror", None) or error)

    def parents(self) -> list[str]:
        """Files that are documents, and records. Texts are not read; records are parsed up to EXACT_BYTES in total."""
        files = self.files()
        mark = listing_mark(files)
        if self._parents is not None and self._parents[0] == mark:
            return self._parents[1]
        exact = sum(file.size for file in files if self._reader(file).rows_are_parents) <= EXACT_BYTES
        parents: list[str] = []
        for file in files:
            reader = self._reader(file)
            if not reader.rows_are_parents:
                parents += [file.name] if file.size and not file.problem else []
                continue
            rows = self._rows(file, reader, START, None) if exact else self._numbers(file, reader)
            parents += [f"{file.name}{reader.mark}{row.number}" for row in rows if isinstance(row, Row)]
        self._parents = (mark, parents)
        return parents

    def _numbers(self, file: Listed, reader: Reader) -> Iterator[Row]:
        try:
            opened = open_regular(file)
            with opened.handle:
                for number in reader.numbers(opened):
                    yield Row(number, "", START, 0.0)
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
                    return
                yield row

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
        return Document(name, name if reader.rows_are_parents else file.name, row.text, progress)

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
                f"source '{self.name}': files were added, removed or changed since it was last read; it goes on in {name}"
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
