from __future__ import annotations

import numpy as np
import pytest

from lmloop.tokens.dealing import deal, stretch, workers

WORLDS = [1, 2, 3, 4, 5, 7, 8, 12, 16, 64]
PARTS = [1, 2, 4, 8]


def in_turns(rows: int, parts: int, first: int = 0) -> np.ndarray:
    return (first + np.arange(rows)) % parts


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("parts", PARTS)
def test_every_part_has_workers_and_every_rank_has_work(parts: int, world: int) -> None:
    assert sorted(stretch(part, parts) for part in range(parts)) == list(range(parts))
    worked = [rank for part in range(parts) for rank in workers(part, parts, world)]
    assert set(worked) == set(range(world))
    # No part is read by more ranks than there must be: cutting a line twice leaves parts + world - 1 pieces at most.
    assert len(worked) <= parts + world - 1
    if parts % world == 0:
        assert len(worked) == parts


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("few", "many"), [(few, many) for many in PARTS for few in PARTS if few <= many])
def test_a_part_of_few_is_worked_by_the_workers_of_its_slots(few: int, many: int, world: int) -> None:
    """A source in `few` parts gives its rows to slots of a round of `many`: part s mod few to slot s."""
    for part in range(few):
        slots = range(part, many, few)
        assert set(workers(part, few, world)) == {rank for slot in slots for rank in workers(slot, many, world)}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("rows", [1, 3, 8, 64, 65])
def test_rows_go_to_workers_of_their_part(rows: int, parts: int, world: int) -> None:
    for first in range(parts):
        part_N = in_turns(rows, parts, first)
        rank_N = deal(part_N, parts, world)
        assert all(rank in workers(part, parts, world) for part, rank in zip(part_N.tolist(), rank_N.tolist(), strict=True))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("parts", PARTS)
def test_whole_rounds_are_dealt_evenly(parts: int, world: int) -> None:
    rows = 8 * world
    assert np.bincount(deal(in_turns(rows, parts), parts, world), minlength=world).tolist() == [8] * world


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("first", range(8))
def test_a_row_for_each_rank_is_one_row_for_each_rank(world: int, first: int) -> None:
    """Small steps, which are less than a round: they begin where the last one ended, at a multiple of their size."""
    rank_N = deal(in_turns(world, 8, first * world), 8, world)
    assert sorted(rank_N.tolist()) == list(range(world))
