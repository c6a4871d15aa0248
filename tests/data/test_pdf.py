"""PDFs as a source."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmloop.data.files
import lmloop.data.pdf
from lmloop.confined import CannotStart
from lmloop.data.corpus import open_corpus, source_names
from lmloop.data.document import Document, Position
from lmloop.data.files import Files
from lmloop.data.pdf import PdfReader, open_pdfs
from lmloop.data.quarantine import Quarantine
from lmloop.data.shuffle import Shuffled
from lmloop.data.source import SourceError
from lmloop.preset.schema import DataSection
from lmloop.preset.sources import FilesSource, PdfSource
from tests import pdfs

TEXT = "keeper lamp oil stairs harbour night storm glass brass considerable extraordinary window coast ships"
WORDS = TEXT.split()


def paragraphs(seed: int, count: int) -> list[str]:
    """Paragraphs of which each is known by its number."""
    generator = random.Random(seed)
    return [
        " ".join([f"Part {number} of {seed} begins", *generator.choices(WORDS, k=generator.randint(20, 90)), "and ends."])
        for number in range(count)
    ]


class Opened:
    """A source of PDFs with what it told, and which files were parsed."""

    def __init__(self, path: Path, quarantine: Path | None = None, **options: Any) -> None:
        self.notices: list[str] = []
        self.quarantine = Quarantine(quarantine, 1.0)
        self.source = open_pdfs("pdfs", PdfSource(path=str(path), **options), self.quarantine, self.notices.append)
        self.parsed: list[str] = []
        reader = self.source._only_reader
        assert isinstance(reader, PdfReader)
        self.reader, parse = reader, reader._parse

        def remember(file: Any) -> Any:
            self.parsed.append(file.name)
            return parse(file)

        reader._parse = remember  # type: ignore[method-assign]

    def read(self, position: Position | None = None) -> list[tuple[Document, Position]]:
        return list(self.source.read(position or {}))

    def texts(self) -> dict[str, str]:
        return {document.id: document.text for document, _ in self.read()}

    def reasons(self) -> dict[str, str]:
        return {file: next(iter(r for r in [self._reason(file)])) for _, file, _ in self.quarantine._seen}

    def _reason(self, name: str) -> str:
        assert self.quarantine.path is not None
        rows = [json.loads(line) for line in self.quarantine.path.read_text().splitlines()]
        (row,) = [row for row in rows if row["file"] == name]
        return f"{row['line']}: {row['reason']}"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Three books of which two can be read, and a note."""
    folder = tmp_path / "my_pdfs"
    (folder / "deeper" / "still").mkdir(parents=True)
    pdfs.write_book(folder / "b.pdf", paragraphs(1, 40))
    pdfs.write_book(folder / "deeper" / "still" / "A.PDF", paragraphs(2, 25))
    (folder / "deeper" / "scan.pdf").write_bytes(pdfs.scanned(12))
    (folder / "z.pdf").write_bytes(pdfs.plain([pdfs.text("A note on one page.")]))
    (folder / "notes.txt").write_text("not a PDF")
    return folder


def test_a_book_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = paragraphs(0, 60)
    pdfs.write_book(tmp_path / "book.pdf", written)
    documents = [document for document, _ in Opened(tmp_path).read()]
    assert "".join(document.text for document in documents).split("\n") == written
    assert [document.id for document in documents] == [f"book.pdf@{k}" for k in range(1, len(documents) + 1)]
    assert {document.parent for document in documents} == {"book.pdf"}
    assert all(3000 <= len(document.text) <= 5000 and document.text.endswith(".\n") for document in documents[:-2])
    assert [document.progress for document in documents] == sorted(document.progress for document in documents)
    assert documents[-1].progress == 1.0


def test_chunk_size(tmp_path: Path) -> None:
    written = paragraphs(0, 20)
    pdfs.write_book(tmp_path / "book.pdf", written)
    small = Opened(tmp_path, chunk_size=500).texts()
    assert all(len(text) <= 500 for text in small.values())
    assert "".join(small.values()) == "\n".join(written)
    assert Opened(tmp_path, chunk_size=0).texts() == {"book.pdf": "\n".join(written)}


def test_a_folder_is_read_recursively_in_order(library: Path, every_resume: Callable[..., list[str]]) -> None:
    (library / ".hidden.pdf").write_bytes(pdfs.plain([pdfs.text("hidden")]))
    (library / ".hidden").mkdir()
    (library / ".hidden" / "x.pdf").write_bytes(pdfs.plain([pdfs.text("hidden")]))
    (library / "deeper" / "loop").symlink_to(library)
    opened = Opened(library)
    ids = every_resume(opened.source)
    assert len(ids) > 5
    assert ids == sorted(ids, key=lambda name: (name.partition("@")[0], int(name.partition("@")[2])))
    assert list(dict.fromkeys(name.partition("@")[0] for name in ids)) == ["b.pdf", "deeper/still/A.PDF", "z.pdf"]
    assert opened.parsed == ["b.pdf", "deeper/scan.pdf", "deeper/still/A.PDF", "z.pdf"]  # once, over all these passes
    assert opened.notices == []
    assert [d.parent for d, _ in Opened(library, exclude=["deeper"]).read()][-1] == "z.pdf"
    assert list(Opened(library / "z.pdf").texts()) == ["z.pdf@1"]


def test_a_bad_file_is_on_record_once_and_counted_once(library: Path, tmp_path: Path) -> None:
    opened = Opened(library, tmp_path / "quarantine.jsonl")
    good = len(opened.read())
    assert opened.read()[-1][1]["rows"] == [good, 1]
    assert opened.reasons() == {"deeper/scan.pdf": "0: scanned: no text on its 12 pages; OCR can add it"}
    first = next(position for document, position in opened.read() if document.parent == "b.pdf")
    assert opened.read(first)[-1][1]["rows"] == [good, 1]


def test_parents_are_files_with_text(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(library)
    assert opened.source.parents() == ["b.pdf", "deeper/still/A.PDF", "z.pdf"]
    opened.read()
    assert len(opened.parsed) == 4
    monkeypatch.setattr(lmloop.data.files, "EXACT_FILES", 3)
    many = Opened(library)
    assert many.source.parents() == ["b.pdf", "deeper/scan.pdf", "deeper/still/A.PDF", "z.pdf"]
    assert many.parsed == []


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_one_book_beside_scans_is_split_by_position(tmp_path: Path, name: str) -> None:
    """Whatever the hashes of their names say, its text must not all be held out."""
    pdfs.write_book(tmp_path / f"{name}.pdf", paragraphs(0, 40))
    for scan in ("x", "y"):
        (tmp_path / f"{scan}.pdf").write_bytes(pdfs.scanned(3))
    section = DataSection.model_validate({"sources": [{"type": "pdf", "path": str(tmp_path)}]})
    corpus = open_corpus(section, seed=0, eval_tokens=100, run_dir=None, quarantine=Quarantine(None, 0.5))
    assert all(next(part.read({}), None) is not None for part in (*corpus.train, *corpus.validation))
    assert len(corpus.train) == len(corpus.validation) == 1


def test_files_that_nobody_wants_are_not_parsed(library: Path) -> None:
    opened = Opened(library)
    wanted = list(opened.source.read_where(lambda parent: parent.startswith("z"), {}))
    assert [document.id for document, _ in wanted] == ["z.pdf@1"]
    assert opened.parsed == ["z.pdf"]


def test_a_changed_file_is_parsed_again(library: Path) -> None:
    opened = Opened(library / "z.pdf")
    assert opened.texts() == {"z.pdf@1": "A note on one page."}
    (library / "z.pdf").write_bytes(pdfs.plain([pdfs.text("Another one.")]))
    assert opened.texts() == {"z.pdf@1": "Another one."}
    assert opened.parsed == ["z.pdf"] * 2


def test_the_cache_is_bounded(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.data.pdf, "CACHE_BYTES", 1000)
    opened = Opened(library)
    whole = opened.texts()
    assert opened.texts() == whole
    assert opened.parsed.count("b.pdf") == 2
    assert opened.reader._cached_bytes == sum(map(len, opened.reader._cache.values())) <= 1000


def test_time_grows_with_the_file_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, seen = Opened(tmp_path), []

    def call(path: str, chunk_size: int, timeout_s: float) -> dict[str, Any]:
        seen.append(timeout_s)
        return {"chunks": [], "page": 0, "fault": ""}

    monkeypatch.setattr(opened.reader._worker, "call", call)
    for megabytes in (0, 40, 10_000):
        opened.reader._parsed(lmloop.data.pdf.OpenFile("x", f"{megabytes}", None, megabytes << 20, 0))  # type: ignore[arg-type]
    assert seen == [10, 20, 60]


def broken_page() -> bytes:
    """Three pages of which the second is not there."""
    good = pdfs.plain([pdfs.text(f"Page {n}.") for n in (1, 2, 3)])
    return good.replace(b"6 0 obj\n<</Type/Page/", b"6 0 obj\n<</Type/Pagr/")


def many_slow_pages() -> bytes:
    """200 pages, each of which takes 0.1 seconds to unpack."""
    objects = {1: pdfs.CATALOG, 2: pdfs.tree([4] * 200), 3: pdfs.FONT, 4: pdfs.page(5)}
    content = pdfs.deflated(pdfs.MEGABYTE_OF_SPACES, 60, pdfs.text("slow"))
    return pdfs.pdf(objects | {5: pdfs.stream(content, b"/Filter/FlateDecode")})


def garbled() -> bytes:
    """A font that says its letters are private ones."""
    table = b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfrange <20> <7E> <E020> endbfrange"
    objects = {
        1: pdfs.CATALOG,
        2: pdfs.tree([4]),
        4: pdfs.page(5),
        5: pdfs.stream(pdfs.text("secret")),
        6: pdfs.stream(table),
    }
    return pdfs.pdf(objects | {3: pdfs.FONT.replace(b">>", b"/ToUnicode 6 0 R>>")})


@pytest.mark.parametrize(
    ("content", "reason", "texts"),
    [
        (pdfs.scanned(1), "0: scanned: no text on its only page", []),
        (pdfs.scanned(1200), "0: scanned: no text on its 1,200 pages", []),
        (b"%PDX-1.4 hello", "0: not a PDF", []),
        (b"", "0: not a PDF: the file is empty", []),
        (b"%PDF-1.7\n%%EOF\n", "0: damaged: its structure cannot be read", []),
        (pdfs.plain([pdfs.text("x")])[:-200], "0: damaged: its end is missing", []),
        (pdfs.pdf({1: pdfs.CATALOG, 2: pdfs.tree([])}), "0: it has no pages", []),
        (broken_page(), "2: damaged: 1 of its 3 pages cannot be read (page 2); the others are kept", ["Page 1.\nPage 3."]),
        (broken_page().replace(b"/Page/", b"/Pagr/"), "0: damaged: none of its 3 pages can be read", []),
        (garbled(), "0: its fonts do not say which letters they show", []),
    ],
    ids=lambda value: value[3:20] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: bytes, reason: str, texts: list[str]) -> None:
    (tmp_path / "x.pdf").write_bytes(content)
    (tmp_path / "y.pdf").write_bytes(pdfs.plain([pdfs.text("good")]))
    opened = Opened(tmp_path, tmp_path / "quarantine.jsonl")
    assert list(opened.texts().values()) == [*texts, "good"]
    assert opened.reasons()["x.pdf"].startswith(reason)


def test_many_bad_pages_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(pdfs.pdf({
        1: pdfs.CATALOG, 2: pdfs.tree([4], 3000), 3: pdfs.FONT, 4: pdfs.page(5), 5: pdfs.stream(pdfs.text("good")),
    }))  # fmt: skip
    opened = Opened(tmp_path, tmp_path / "quarantine.jsonl")
    assert list(opened.texts().values()) == ["good"]
    assert "2,999 of its 3,000 pages cannot be read (page 2, 3, 4, 5, 6, …)" in opened.reasons()["x.pdf"]


def test_passwords(tmp_path: Path) -> None:
    for name, user in (("locked", "secret"), ("open", "")):
        (tmp_path / f"{name}.pdf").write_bytes(pdfs.plain([pdfs.text("Everything that is kept here.")]))
        pdfs.encrypt(tmp_path / f"{name}.pdf", user, "owner")
    opened = Opened(tmp_path, tmp_path / "quarantine.jsonl")
    assert opened.texts() == {"open.pdf@1": "Everything that is kept here."}
    assert opened.reasons() == {"locked.pdf": "0: encrypted: it opens only with a password"}


def test_limits_of_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.data.pdf, "SECONDS", 3.0)
    (tmp_path / "a.pdf").write_bytes(pdfs.bomb(1100))
    (tmp_path / "b.pdf").write_bytes(many_slow_pages())
    (tmp_path / "c.pdf").write_bytes(pdfs.plain([pdfs.text("good")]))
    opened = Opened(tmp_path, tmp_path / "quarantine.jsonl")
    assert opened.texts() == {"c.pdf@1": "good"}
    reasons = opened.reasons()
    assert "needs more than 1,024 MB of memory" in reasons["a.pdf"]
    assert reasons["b.pdf"].startswith("0: cannot be read: it takes longer than 3 s")


def test_a_file_that_goes_or_becomes_a_pipe(library: Path, tmp_path: Path) -> None:
    opened = Opened(library, tmp_path / "quarantine.jsonl")
    listed = opened.source.files()
    (library / "z.pdf").unlink()
    os.mkfifo(library / "z.pdf")
    opened.source.files = lambda: listed  # type: ignore[method-assign]
    reading = opened.source.read({})
    assert next(reading)[0].id == "b.pdf@1"
    (library / "deeper" / "still" / "A.PDF").unlink()
    assert {document.parent for document, _ in reading} == {"b.pdf"}
    assert "cannot be opened: No such file" in opened.reasons()["deeper/still/A.PDF"]
    assert "not a file but a pipe" in opened.reasons()["z.pdf"]


def test_a_file_that_changes_while_it_is_handed_over(tmp_path: Path) -> None:
    """The other process opens it anew."""
    (tmp_path / "x.pdf").write_bytes(pdfs.plain([pdfs.text("x")]))
    opened = Opened(tmp_path)
    (listed,) = opened.source.files()
    (tmp_path / "x.pdf").unlink()
    assert opened.reader._parse(lmloop.data.pdf.OpenFile("x.pdf", listed.path, None, 1, 1)).fault.endswith(
        "No such file or directory"
    )  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "x.pdf")
    assert opened.reader._parse(lmloop.data.pdf.OpenFile("x.pdf", listed.path, None, 1, 1)).fault == "not a file"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "there is no file or folder {}: make it, or correct its path"),
        ("empty", "no file in {} ends in .pdf: put some there or correct path"),
    ],
)
def test_nothing_to_read(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        Opened(tmp_path / path).read()
    assert words.format(tmp_path / path) in str(caught.value)


def test_a_source_of_files_says_where_pdfs_belong(library: Path) -> None:
    for path in (library / "deeper", library / "z.pdf"):
        files = Files("files", FilesSource(path=str(path)), Quarantine(None, 1.0), print)
        with pytest.raises(SourceError, match="type 'pdf'"):
            files.files()


def test_a_machine_that_cannot_read_pdfs(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is at fault then, so none is quarantined."""
    opened = Opened(library)

    def call(*arguments: Any, timeout_s: float) -> Any:
        raise CannotStart("No module named 'pypdfium2'")

    monkeypatch.setattr(opened.reader._worker, "call", call)
    with pytest.raises(SourceError, match="PDFs cannot be read on this machine: No module named 'pypdfium2'"):
        opened.read()
    assert not opened.quarantine.reasons("pdfs")


def test_shuffled(library: Path, every_resume: Callable[..., list[str]]) -> None:
    opened = Opened(library, chunk_size=1000)
    plain = [document.id for document, _ in opened.read()]
    shuffled = Shuffled(opened.source, 3, print)
    ids = every_resume(shuffled, same_positions=True)
    assert sorted(ids) == sorted(plain)
    assert ids != plain
    assert opened.parsed.count("b.pdf") == 1


def test_as_a_part_of_a_corpus(library: Path) -> None:
    sources = [{"type": "pdf", "path": str(path), "description": "books"} for path in (library, library / "z.pdf")]
    section = DataSection.model_validate({"sources": sources})
    assert source_names(section.sources) == [str(library), str(library / "z.pdf")]
    quarantine = Quarantine(None, 0.5)
    corpus = open_corpus(section, seed=0, eval_tokens=100, run_dir=None, quarantine=quarantine)
    train, validation = corpus.train[0], corpus.validation[0]
    parents = {document.parent for document, _ in train.read({})}
    assert parents.isdisjoint(document.parent for document, _ in validation.read({}))


def test_one_book_is_split_by_position(tmp_path: Path) -> None:
    written = paragraphs(0, 40)
    pdfs.write_book(tmp_path / "book.pdf", written)
    section = DataSection.model_validate({"sources": [{"type": "pdf", "path": str(tmp_path)}]})
    corpus = open_corpus(section, seed=0, eval_tokens=100, run_dir=None, quarantine=Quarantine(None, 0.5))
    parts = [*corpus.train, *corpus.validation, *corpus.test]
    assert "".join(document.text for part in parts for document, _ in part.read({})) == "\n".join(written)
