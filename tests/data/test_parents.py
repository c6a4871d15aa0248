from __future__ import annotations

import pytest

from lmloop.data.parents import RowIds, WantedIds


def ids() -> tuple[RowIds, list[str]]:
    made = RowIds()
    made.add("a.txt")
    made.add_rows("b.jsonl#", [1, 3, 4_000_000_000])
    made.add_rows("empty.jsonl#", [])
    made.add("c.txt")
    return made, ["a.txt", "b.jsonl#1", "b.jsonl#3", "b.jsonl#4000000000", "c.txt"]


def test_ids_are_those_of_the_list() -> None:
    made, expected = ids()
    assert made == expected
    assert list(made) == expected
    assert [made[at] for at in range(-5, 5)] == expected * 2
    assert made[1:4:2] == expected[1:4:2]
    assert len(made) == 5
    assert made != expected[:4]
    assert made != [*expected[:4], "d"]
    assert "b.jsonl#3" in made
    assert not RowIds()
    for at in (5, -6):
        with pytest.raises(IndexError):
            made[at]


def test_wanted_ids() -> None:
    made, _ = ids()
    wanted = WantedIds(made, lambda name: name.startswith("b"))
    assert wanted == ["b.jsonl#1", "b.jsonl#3", "b.jsonl#4000000000"]
    assert wanted[-1] == "b.jsonl#4000000000"
    assert not WantedIds(made, lambda name: False)
