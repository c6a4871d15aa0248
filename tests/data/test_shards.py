from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmloop.data.files as files_module
import lmloop.data.json_files as json_files
from lmloop.data.document import Document, Position
from lmloop.data.files import Files
from lmloop.data.frozen import StreamRest
from lmloop.data.listing import Listed, OpenFile
from lmloop.data.quarantine import Quarantine
from lmloop.data.shards import MIN_PARENTS, VIRTUAL_SHARDS, _in_shard, cut, shard_count
from lmloop.data.shuffle import Shuffled
from lmloop.data.source import Source, is_broken
from lmloop.data.split import split
from lmloop.preset.sources import FilesSource
from tests.tokens.streams import Stream


def files(path: Path, **section: Any) -> Files:
    return Files(path.name, FilesSource(path=str(path), **section), Quarantine(None, 0.5), print)


def folder(path: Path, count: int) -> Path:
    path.mkdir()
    for index in range(count):
        (path / f"{index:05}.txt").write_text(f"text {index}")
    return path


def lines(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"text": f"text {index}"}) + "\n" for index in range(count)))
    return path


def ids(source: Source, epoch: int = 0) -> list[str]:
    return [document.id for document, _ in source.read({}, epoch)]


@pytest.mark.parametrize(("count", "parts"), [(MIN_PARENTS - 1, 1), (MIN_PARENTS, 8), (2_000, 8)])
def test_a_finite_source_is_cut_where_it_has_enough_parents(tmp_path: Path, count: int, parts: int) -> None:
    source = files(lines(tmp_path / "a.jsonl", count))
    assert shard_count(source) == len(cut(source)) == parts
    assert parts != 1 or cut(source) == [source]


@pytest.mark.parametrize("make", [folder, lines])
def test_the_parts_are_together_the_source(tmp_path: Path, make: Any) -> None:
    source = files(make(tmp_path / "a.jsonl", 1_500))
    parts = [ids(part) for part in cut(source)]
    assert sorted(name for part in parts for name in part) == sorted(ids(source))
    place = {name: index for index, name in enumerate(ids(source))}
    for part in parts:
        assert part == sorted(part, key=place.__getitem__)
        assert len(part) == pytest.approx(1_500 / VIRTUAL_SHARDS, rel=0.25)
    assert {part.name for part in cut(source)} == {source.name}


def test_parts_do_not_follow_a_pattern_of_line_numbers() -> None:
    """Every part has its share of each residue: alternating questions and answers do not fall apart."""
    for index in range(VIRTUAL_SHARDS):
        keep = _in_shard(index, VIRTUAL_SHARDS)
        numbers = [number for number in range(20_000) if keep(f"chats.jsonl#{number}")]
        assert len(numbers) == pytest.approx(2_500, rel=0.06)
        for modulus in (2, 3, 5, 10, 16):
            for residue in range(modulus):
                share = sum(number % modulus == residue for number in numbers)
                assert share == pytest.approx(len(numbers) / modulus, rel=0.3), (index, modulus, residue)


def test_parts_are_those_of_what_a_split_left_to_train(tmp_path: Path) -> None:
    source = files(lines(tmp_path / "a.jsonl", 3_000))
    parts = split(source, 0.1, 0.1)
    assert parts.validation is not None
    read = [name for part in cut(parts.train) for name in ids(part)]
    assert len(read) == 2_400
    assert sorted(read) == sorted(ids(parts.train))
    assert not set(read) & set(ids(parts.validation))


def test_parts_of_a_shuffled_source_keep_its_order(tmp_path: Path) -> None:
    shuffled = Shuffled(files(lines(tmp_path / "a.jsonl", 1_200)), seed=1, notify=print)
    parts = cut(split(shuffled, 0.1, 0.0, whole=shuffled).train)
    for epoch in range(2):
        whole = ids(split(shuffled, 0.1, 0.0, whole=shuffled).train, epoch)
        read = [ids(part, epoch) for part in parts]
        assert sorted(name for part in read for name in part) == sorted(whole)
        place = {name: index for index, name in enumerate(whole)}
        assert all(part == sorted(part, key=place.__getitem__) for part in read)


@pytest.mark.parametrize("make", [folder, lines])
def test_a_part_goes_on_after_any_document(tmp_path: Path, make: Any) -> None:
    part = cut(files(make(tmp_path / "a.jsonl", 1_100)))[3]
    read = list(part.read({}))
    for index in range(0, len(read), 10):
        position = json.loads(json.dumps(read[index][1]))
        assert [document.id for document, _ in part.read(position)] == [document.id for document, _ in read[index + 1 :]]


def test_a_part_does_not_parse_the_lines_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(lines(tmp_path / "a.jsonl", 2_000))
    parts = cut(source)
    parsed, inner = 0, json_files.decode

    def decode(*arguments: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return inner(*arguments)

    monkeypatch.setattr(json_files, "decode", decode)
    counts = []
    for part in parts:
        parsed = 0
        counts.append((len(ids(part)), parsed))
    assert all(read == parsed for read, parsed in counts)
    assert sum(parsed for _, parsed in counts) == 2_000


def test_a_part_does_not_open_the_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = cut(files(folder(tmp_path / "a", 1_100)))[0]
    expected = ids(part)
    opened, inner = [], files_module.open_regular

    def open_regular(file: Listed) -> OpenFile:
        opened.append(file.name)
        return inner(file)

    monkeypatch.setattr(files_module, "open_regular", open_regular)
    assert ids(part) == expected == opened


# ---- streams ----


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (100, 8)])
def test_streams_are_cut_into_powers_of_two(count: int, parts: int) -> None:
    stream = Stream("s", [["a"]] * count)
    assert shard_count(stream) == parts
    assert sorted(name for part in cut(stream) for name in ids(part)) == sorted(ids(stream))


def test_a_stream_that_cannot_be_read_in_parts_stays_whole() -> None:
    class Plain:
        name = "plain"

        def parents(self) -> None:
            return None

        def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
            yield from ()

    assert shard_count(Plain()) == shard_count(StreamRest(Plain(), [])) == 1


def test_what_is_held_out_of_a_stream_is_held_out_of_its_parts() -> None:
    stream = Stream("s", [[f"text {file} {line}" for line in range(5)] for file in range(4)])
    documents = [document for document, _ in stream.read({})]
    held = [documents[1], documents[7]]
    rest = StreamRest(stream, held)
    read = [name for part in cut(rest) for name in ids(part)]
    assert sorted(read) == sorted({d.id for d in documents} - {d.id for d in held})


def test_a_held_out_text_does_not_come_back_under_another_name() -> None:
    """A stream may number its documents over all files, its parts for themselves."""

    class Renumbered(Stream):
        def shard(self, index: int, count: int) -> Renumbered:
            part = Renumbered(f"{self.name}", self.files)
            part.first, part.step = index, count
            return part

        def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
            for number, (document, after) in enumerate(super().read(position, epoch)):
                yield Document(f"{self.first}/{number}", f"{number}", document.text, 0.0), after

    stream = Renumbered("s", [[f"text {file} {line}" for line in range(5)] for file in range(2)])
    held = [document for document, _ in stream.read({})][6:8]
    parts = cut(StreamRest(stream, held))
    texts = [document.text for part in parts for document, _ in part.read({})]
    assert sorted(texts) == sorted(
        {f"text {file} {line}" for file in range(2) for line in range(5)} - {d.text for d in held}
    )


def test_a_part_that_broke_off_says_so_through_what_is_around_it() -> None:
    part = cut(StreamRest(Stream("s", [["a"] * 5] * 2, die_at={1: 2}), []))
    assert [len(ids(one)) for one in part] == [5, 2]
    assert [is_broken(one) for one in part] == [False, True]


def one_text(tmp_path: Path, characters: int) -> str:
    text = "".join(f"{number:07}\n" for number in range(characters // 8))
    (tmp_path / "book.txt").write_text(text)
    return text


@pytest.mark.parametrize("options", [{}, {"chunk_size": 5_000}])
@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_one_long_text_is_read_at_eight_places(tmp_path: Path, options: dict[str, Any], held_out: float) -> None:
    text = one_text(tmp_path, 200_000)
    train = split(files(tmp_path / "book.txt", **options), held_out, 0.0).train
    parts = cut(train)
    assert len(parts) == 8
    pieces = [list(part.read({})) for part in parts]
    joined = "".join(document.text for piece in pieces for document, _ in piece)
    assert joined == text[: len(joined)]
    assert len(joined) == pytest.approx(len(text) * (1 - held_out), abs=8)
    lengths = [sum(len(document.text) for document, _ in piece) for piece in pieces]
    assert max(lengths) - min(lengths) <= 1
    names = [document.id for piece in pieces for document, _ in piece]
    assert len(set(names)) == len(names)
    assert all(part.name == train.name and part.parents() == train.parents() for part in parts)
    assert pieces[3][-1][0].progress == 1.0
    for part, piece in zip(parts, pieces, strict=True):  # goes on after any document
        for at, (_, position) in enumerate(piece):
            assert [document for document, _ in part.read(position)] == [document for document, _ in piece[at + 1 :]]


@pytest.mark.parametrize(("characters", "count"), [(16_000, 1), (40_000, 2), (100_000, 4), (140_000, 8)])
def test_a_short_text_is_read_at_fewer(tmp_path: Path, characters: int, count: int) -> None:
    one_text(tmp_path, characters)
    assert len(cut(split(files(tmp_path / "book.txt"), 0.0, 0.0).train)) == count
