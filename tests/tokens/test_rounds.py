from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lmloop.data.shards import cut
from lmloop.data.source import Source
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.packing import Lane
from lmloop.tokens.rounds import first_counts
from tests.tokens.sources import MemorySource, texts
from tests.tokens.streams import Ranks, Stream, Told

TOKENIZER = build_tokenizer(TokenizerSection(type="char"), [MemorySource("s", texts(50, 1))])
WEIGHTS = {"one": 0.7, "two": 3.0, "four": 1.0, "eight": 2.2}


def sources() -> list[Source]:
    return [
        MemorySource("one", texts(30, 1)),
        Stream("two", [texts(9, 2), texts(4, 3)]),
        Stream("four", [texts(5, 4 + file) for file in range(4)]),
        Stream("eight", [texts(6, 9 + file) for file in range(8)]),
    ]


def one_by_one(weights: list[float], rows: int, length: int) -> list[Told]:
    """The order written out slowly: eight slots in turn, each with a mix of its own that began one row after the last."""
    opened = sources()
    lanes = [[Lane(part, TOKENIZER, index=i) for part in cut(source)] for i, source in enumerate(opened)]
    taken = [[0] * len(weights) for _ in range(8)]

    def next_source(slot: int) -> int:
        best = min(range(len(weights)), key=lambda i: ((taken[slot][i] + 0.5) / weights[i], i))
        taken[slot][best] += 1
        return best

    for slot in range(8):
        for _ in range(slot):
            next_source(slot)
    told: list[Told] = []
    for number in range(rows):
        slot = number % 8
        source = next_source(slot)
        lane = lanes[source][slot % len(lanes[source])]
        row = lane.take(length) or lane.take(length)
        assert row is not None
        arrays = (row.tokens_T, row.targets_T, row.weights_T, row.segments_T)
        told.append((row.source, row.documents, *(tuple(array.tolist()) for array in arrays)))
    return told


@pytest.mark.parametrize("rows", [64, 3, 13])
@pytest.mark.parametrize("strategy", ["round_robin", "weighted"])
def test_the_order_is_that_of_one_row_at_a_time(strategy: str, rows: int) -> None:
    """In steps of any size, also of less than a round."""
    feed = Ranks(
        lambda rank: sources(), TOKENIZER, world=1, strategy=strategy, source_weights=WEIGHTS, tokens_per_step=8 * rows
    )
    steps = [feed.step(8)[0] for _ in range(-(-200 // rows))]
    weights = [1.0] * 4 if strategy == "round_robin" else list(WEIGHTS.values())
    assert [row for step in steps for row in step] == one_by_one(weights, len(steps) * rows, 8)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [1.0] * 3, [0.7, 3.0, 1.0, 2.2], [100.0, 1.0]], ids=str)
def test_a_round_has_all_sources_in_their_shares(weights: list[float]) -> None:
    start = first_counts(weights, 8)
    assert start.sum(axis=1).tolist() == list(range(8))  # slot s begins s rows into the mix
    shares = np.asarray(weights) / sum(weights)
    assert np.abs(start - np.arange(8)[:, None] * shares).max() < 1.0


def test_shares_of_weighted_sources_in_every_step() -> None:
    feed = Ranks(lambda rank: sources(), TOKENIZER, world=2, strategy="weighted", source_weights=WEIGHTS)
    shares = np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
    total = Counter[int]()
    for _ in range(50):
        step = Counter(row[0] for rows in feed.step(8) for row in rows)
        total += step
        assert all(abs(step[i] - 64 * share) <= 8 for i, share in enumerate(shares))
    assert all(abs(total[i] - 3_200 * share) <= 8 for i, share in enumerate(shares))


def test_parts_are_read_at_the_same_pace() -> None:
    lines = [[f"{file}" * 20] * 400 for file in range(8)]
    feed = Ranks(lambda rank: [Stream("s", lines), MemorySource("m", texts(40, 1))], TOKENIZER, world=1)
    files = Counter(row[1][0].split(":")[1] for _ in range(20) for row in feed.step(8)[0] if row[0] == 0)
    assert set(files.values()) == {80}
