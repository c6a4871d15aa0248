from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lmloop.data import files, text_files

Open = Callable[..., "object"]


@pytest.mark.parametrize(
    ("data", "text", "bad"),
    [
        (b"hello\n", "hello\n", []),
        (b"\xef\xbb\xbfhello", "hello", []),
        (b"a\r\nb\r\n", "a\nb\n", []),
        (b"a\rb\n", "a\rb\n", []),
        ("grüße 😀\n".encode(), "grüße 😀\n", []),
        (b"", None, []),
        (b" \n\t\n", None, []),
        (b"\xef\xbb\xbf", None, []),
        (
            b"one\n" * 20 + b"b\xe9d\n" + b"two",
            "one\n" * 20 + "two",
            [(21, "not UTF-8 (byte 0xe9); convert the file to UTF-8")],
        ),
        (b"one\n" * 20 + b"a\0b\n" + b"two", "one\n" * 20 + "two", [(21, "not text (NUL bytes)")]),
        (b"one\n" * 20 + b"tw\xc3", "one\n" * 20, [(21, "not UTF-8 (byte 0xc3); convert the file to UTF-8")]),
        (
            b"\xe9\n" * 9 + b"a\n",
            None,
            [(1, "not a text file: 9 of 10 lines are not UTF-8 (byte 0xe9); convert the file to UTF-8")],
        ),
        (b"\0" * 1000, None, [(1, "not text (NUL bytes)")]),
        ("hello".encode("utf-16"), None, [(0, "UTF-16; convert the file to UTF-8")]),
    ],
)
@pytest.mark.parametrize("chunk_size", [0, 1_000_000])
def test_bytes_to_text(tmp_path: Path, opened, data: bytes, text: str | None, bad: list, chunk_size: int) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    it = opened(tmp_path, chunk_size=chunk_size)
    name = "a.txt@1" if chunk_size else "a.txt"
    assert it.texts() == ({} if text is None else {name: text})
    assert it.bad == [("a.txt", *row) for row in bad]


def words(seed: int, characters: int) -> str:
    random.seed(seed)
    out: list[str] = []
    while sum(map(len, out)) < characters:
        out.append(random.choice(["a", "wörd", "😀", "\n", "\r\n", " ", "  ", "x" * 30, "\n\n"]) + random.choice(["", " "]))
    return "".join(out)


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 1000, 100_000])
@pytest.mark.parametrize("block_bytes", [16, 4096])
def test_chunks_are_the_text_and_resume_anywhere(
    tmp_path: Path, monkeypatch, opened, every_resume, chunk_size: int, block_bytes: int
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    text = words(chunk_size, 700)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    it = opened(tmp_path, chunk_size=chunk_size)
    documents = it.documents()
    kept = "".join(document.text for document in documents)
    without = str.maketrans("", "", " \r\n")  # chunks of nothing but space are passed over
    assert kept.translate(without) == text.translate(without)
    if chunk_size > 100:
        assert kept == text.replace("\r\n", "\n")
    assert all(0 < len(document.text) <= chunk_size for document in documents)
    assert [document.id for document in documents] == [f"a.txt@{n + 1}" for n in range(len(documents))]
    assert {document.parent for document in documents} == {"a.txt"}
    assert it.source.parents() == ["a.txt"]
    if chunk_size > 1:
        every_resume(it.source)


def test_chunks_end_at_a_line_break_or_space_that_is_near(tmp_path: Path, opened) -> None:
    (tmp_path / "a.txt").write_text("x" * 85 + "\n" + "y" * 90 + " " + "z" * 200)
    lengths = [len(text) for text in opened(tmp_path, chunk_size=100).texts().values()]
    assert lengths == [86, 91, 100, 100]


def test_bad_lines_of_a_chunked_file_do_not_move_the_places(tmp_path: Path, monkeypatch, opened, every_resume) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 400)
    lines = [f"line {n} äöü\n".encode() for n in range(200)]
    for n in range(5, 200, 20):
        lines[n] = b"bad \xff line\n"
    (tmp_path / "a.txt").write_bytes(b"".join(lines))
    it = opened(tmp_path, chunk_size=60)
    text = "".join(it.texts().values())
    assert text == "".join(line.decode() for line in lines if b"\xff" not in line)
    assert [line for _, line, _ in it.bad] == [n + 1 for n in range(5, 200, 20)]
    every_resume(it.source)


def test_a_line_of_megabytes_is_cut_between_characters(tmp_path: Path, monkeypatch, opened) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1001)
    text = "😀" * 5000
    (tmp_path / "a.txt").write_text(text)
    it = opened(tmp_path, chunk_size=999)
    assert "".join(it.texts().values()) == text
    assert it.bad == []


def test_a_file_too_large_for_one_document_is_read_in_pieces(tmp_path: Path, monkeypatch, opened, every_resume) -> None:
    monkeypatch.setattr(files, "WHOLE_BYTES", 10)
    monkeypatch.setattr(files, "PIECE_CHARACTERS", 4)
    (tmp_path / "a.txt").write_text("abcdefghijk")
    (tmp_path / "b.txt").write_text("x" * 10)
    it = opened(tmp_path)
    assert it.texts() == {"a.txt@1": "abcd", "a.txt@2": "efgh", "a.txt@3": "ijk", "b.txt": "x" * 10}
    assert it.bad == []
    assert it.source.parents() == ["a.txt", "b.txt"]
    (notice,) = it.notices
    assert "a.txt (0 MB) is too large for one document" in notice
    every_resume(it.source)
