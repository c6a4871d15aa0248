from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmloop.data import frozen
from lmloop.data.document import Document, Position
from lmloop.data.frozen import FrozenPart, StreamRest, head


class Endless:
    name = "endless"

    def __init__(self, count: int = 10**9) -> None:
        self.count = count
        self.read_count = 0

    def parents(self) -> None:
        return None

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        for n in range(position.get("n", 0), self.count):
            self.read_count += 1
            yield Document(f"s#{n}", f"s#{n}", f"{n:010}" * 10, 0.0), {"n": n + 1}


def test_the_head_is_as_long_as_needed(every_resume) -> None:
    stream = Endless()
    held = head(stream, 1000, 500)
    assert (len(held.validation), len(held.test)) == (10, 5)
    assert not {d.id for d in held.validation} & {d.id for d in held.test}
    assert stream.read_count < 150
    assert head(Endless(), 1000, 500) == held
    assert head(Endless(), 1000, 0).validation == held.validation
    every_resume(FrozenPart("endless", held.validation))
    assert FrozenPart("endless", held.validation).parents() == [d.id for d in held.validation]


def test_a_short_stream_gives_what_it_has() -> None:
    held = head(Endless(40), 10**6, 0)
    assert 3 <= len(held.validation) <= 20
    assert held.test == []


def test_an_unlucky_head_ends() -> None:
    stream = Endless()
    stream.read = lambda position, epoch=0: (  # type: ignore[method-assign]
        (Document("s#0", "s#0", "x" * 10, 0.0), {}) for _ in range(10**9)
    )
    assert head(stream, 100, 100).test == [] or head(stream, 100, 100).validation == []


def test_the_rest_has_everything_else(every_resume) -> None:
    held = head(Endless(), 1000, 0)
    out = frozenset(d.id for d in held.validation)
    rest = every_resume(StreamRest(Endless(100), held.validation))
    assert set(rest) | out == {f"s#{n}" for n in range(100)} | out
    assert not set(rest) & out


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run" / "validation.jsonl"
    parts = {
        "one": [Document("one#1", "one#1", "text\u2028 with \x85 breaks\n😀\0", 0.0), Document("one#2", "p", "x", 0.0)],
        "none": [],
    }
    frozen.save(path, parts)
    assert frozen.load(path) == parts
    assert frozen.load(tmp_path / "missing") == {}


@pytest.mark.parametrize(
    "content", ["junk\n", '{"source": "a"}\n', "[]\n", '{"source": "a", "id": "b", "parent": "c", "text']
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "v.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"v.jsonl is damaged: restore it"):
        frozen.load(tmp_path / "v.jsonl")
