from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lmloop.data.document import Document, Message, Pair, Position
from lmloop.data.shuffle import Shuffled
from lmloop.data.source import Source
from lmloop.data.split import share_counts, split


def ids(source: Source | None) -> list[str]:
    return [] if source is None else [document.id for document, _ in source.read({})]


def text(source: Source | None) -> str:
    return "" if source is None else "".join(document.text for document, _ in source.read({}))


@pytest.mark.parametrize(
    ("total", "validation", "test", "counts"),
    [
        (100, 0.1, 0.1, (10, 10)),
        (7473, 0.1, 0.1, (747, 747)),
        (15, 0.1, 0.0, (2, 0)),
        (2, 0.1, 0.0, (1, 0)),
        (2, 0.1, 0.1, (1, 0)),
        (3, 0.1, 0.1, (1, 1)),
        (2, 0.0, 0.1, (0, 1)),
        (10, 0.0, 0.0, (0, 0)),
        (10, 0.5, 0.4, (5, 4)),
        (3, 0.5, 0.49, (2, 0)),
        (1000, 0.0001, 0.0, (1, 0)),
    ],
)
def test_share_counts(total: int, validation: float, test: float, counts: tuple[int, int]) -> None:
    assert share_counts(total, validation, test) == counts
    assert sum(counts) < total


def folder_of(path: Path, count: int) -> Path:
    for n in range(count):
        (path / f"{n:03}.txt").write_text(f"document {n}\n")
    return path


@pytest.mark.parametrize(("count", "validation", "test"), [(100, 0.1, 0.1), (37, 0.2, 0.0), (2, 0.1, 0.0), (23, 0.0, 0.3)])
def test_exact_by_hash_rank(tmp_path: Path, opened, every_resume, count: int, validation: float, test: float) -> None:
    source = opened(folder_of(tmp_path, count)).source
    parts = split(source, validation, test)
    ranked = sorted(source.parents(), key=lambda parent: hashlib.blake2b(parent.encode(), digest_size=8).digest())
    low, high = share_counts(count, validation, test)
    assert sorted(ids(parts.validation)) == sorted(ranked[:low])
    assert sorted(ids(parts.test)) == sorted(ranked[low : low + high])
    assert sorted(ids(parts.train)) == sorted(ranked[low + high :])
    for part in (parts.train, parts.validation, parts.test):
        if part is not None:
            assert part.parents() == ids(part) == sorted(ids(part))
            every_resume(part)


def test_a_new_document_moves_few_and_never_from_held_out_to_training_unseen(tmp_path: Path, opened) -> None:
    source = opened(folder_of(tmp_path, 50)).source
    parts = split(source, 0.2, 0.0)
    before = set(ids(parts.validation))
    (tmp_path / "new.txt").write_text("new")
    seen_now = set(ids(parts.train)) | set(ids(parts.validation))
    assert len(seen_now) == 51  # the parts of a run still do not overlap, and miss nothing
    assert not set(ids(parts.train)) & set(ids(parts.validation))
    after = set(ids(split(opened(tmp_path).source, 0.2, 0.0).validation))
    assert len(before ^ after) <= 2


def test_chunks_and_records_stay_with_their_parent(tmp_path: Path, opened) -> None:
    for n in range(20):
        (tmp_path / f"{n}.txt").write_text("word " * 100)
    parts = split(opened(tmp_path, chunk_size=50).source, 0.25, 0.25)
    parents = [{name.split("@")[0] for name in ids(part)} for part in (parts.train, parts.validation, parts.test)]
    assert [len(part) for part in parents] == [10, 5, 5]
    assert not parents[0] & parents[1] | parents[0] & parents[2] | parents[1] & parents[2]


def test_bad_and_blank_rows_do_not_count(tmp_path: Path, opened) -> None:
    rows = [json.dumps({"text": f"t{n}"}) if n % 3 else ["", "bad", '{"text": " "}'][n // 3 % 3] for n in range(90)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    parts = split(opened(tmp_path).source, 0.1, 0.1)
    assert [len(ids(part)) for part in (parts.train, parts.validation, parts.test)] == [48, 6, 6]


def test_held_out_parts_of_a_shuffled_source_keep_their_order(tmp_path: Path, opened) -> None:
    it = opened(folder_of(tmp_path, 60))
    parts = split(Shuffled(it.source, 1, it.notices.append), 0.2, 0.0, whole=it.source)
    plain = split(it.source, 0.2, 0.0)
    assert ids(parts.validation) == ids(plain.validation)
    assert ids(parts.train) != ids(plain.train)
    assert sorted(ids(parts.train)) == sorted(ids(plain.train))


LINES = "".join(f"line {n} of the play\n" for n in range(500))


@pytest.mark.parametrize("chunk_size", [0, 100, 10_000_000])
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.0), (0.1, 0.1), (0.0, 0.2), (0.5, 0.4)])
def test_one_document_is_cut_by_position(
    tmp_path: Path, opened, every_resume, chunk_size: int, validation: float, test: float
) -> None:
    (tmp_path / "play.txt").write_text(LINES)
    source = opened(tmp_path / "play.txt", chunk_size=chunk_size).source
    parts = split(source, validation, test)
    pieces = [text(part) for part in (parts.train, parts.validation, parts.test)]
    assert "".join(pieces) == LINES
    assert all(piece.endswith("\n") for piece in pieces if piece)
    for piece, share in zip(pieces, (1 - validation - test, validation, test), strict=True):
        assert abs(len(piece) - share * len(LINES)) <= 25
    for part in (parts.train, parts.validation, parts.test):
        if part is not None:
            assert part.parents() == ["play.txt"]
            assert next(iter(part.read({})))[0].parent == "play.txt"
            every_resume(part)
            progress = [document.progress for document, _ in part.read({})]
            assert progress == sorted(progress)
            assert progress[0] > 0
            assert progress[-1] == 1.0


def test_without_a_line_break_near_the_cut_is_exact(tmp_path: Path, opened) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    parts = split(opened(tmp_path).source, 0.1, 0.1)
    assert [len(text(part)) for part in (parts.train, parts.validation, parts.test)] == [800, 100, 100]
    assert ids(parts.train) == ["a.txt[0:800]"]
    assert ids(parts.validation) == ["a.txt[800:900]"]


def test_a_cut_that_is_at_a_line_break_stays(tmp_path: Path, opened) -> None:
    (tmp_path / "a.txt").write_text(("x" * 9 + "\n") * 100)
    assert len(text(split(opened(tmp_path).source, 0.1, 0.0).train)) == 900


@pytest.mark.parametrize("content", ["x", "xy", "abc\n", "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n"])
def test_tiny_documents_lose_nothing(tmp_path: Path, opened, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    parts = split(opened(tmp_path).source, 0.1, 0.1)
    assert text(parts.train)
    assert text(parts.train) + text(parts.validation) + text(parts.test) == content


def test_nothing_held_out(tmp_path: Path, opened) -> None:
    source = opened(folder_of(tmp_path, 3)).source
    parts = split(source, 0.0, 0.0)
    assert (parts.train, parts.validation, parts.test) == (source, None, None)


class Counting:
    """A source that counts the documents that were read of it."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.source = source
        self.read_so_far = 0

    def parents(self):
        return self.source.parents()

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        for document, after in self.source.read(position, epoch):
            self.read_so_far += 1
            yield document, after


def test_one_document_that_is_not_split_is_read_once(tmp_path: Path, opened, every_resume) -> None:
    (tmp_path / "play.txt").write_text(LINES)
    source = Counting(opened(tmp_path / "play.txt", chunk_size=100).source)
    parts = split(source, 0.0, 0.0)
    assert source.read_so_far == len(ids(source.source))
    assert (text(parts.train), parts.validation, parts.test) == (LINES, None, None)
    every_resume(parts.train)


SAID = (Message("user", "Sure?"),)


@pytest.mark.parametrize(
    "kind",
    [{"messages": (*SAID, Message("assistant", "Yes."))}, {"pair": Pair(SAID, (Message("assistant", "Yes."),), SAID)}],
    ids=["conversation", "pair"],
)
@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.1, 0.1)])
def test_a_conversation_or_pair_alone_trains_and_is_not_cut(
    tmp_path: Path, opened, kind: dict[str, object], shares: tuple[float, float]
) -> None:
    (tmp_path / "play.txt").write_text(LINES)
    source = Counting(opened(tmp_path / "play.txt", chunk_size=100).source)
    plain = source.source.read
    source.source.read = lambda *place: ((replace(document, **kind), after) for document, after in plain(*place))
    parts = split(source, *shares)
    assert (parts.train, parts.validation, parts.test) == (source, None, None)
    assert source.read_so_far == 1
