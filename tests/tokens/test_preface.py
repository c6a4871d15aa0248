"""Texts before the data: each token once, first, and resumable at any step."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest

from lmloop.preset.schema import DataSection
from lmloop.tokens.feed import Interrupted, TextFeed, merge_states
from lmloop.tokens.preface import PrefaceFeed
from tests.tokens.sources import MemorySource, expected_pairs, step_pairs, texts
from tests.tokens.streams import told
from tests.tokens.test_feed import TOKENIZER

ENTRIES = [("run#1", "first words of mine"), ("run#2", "second"), ("part 3", "a third, longer than a row is wide " * 2)]


def preface_feed(
    *, strategy: str = "sequential", loop: bool = False, rank: int = 0, world: int = 1, stop: Any = None, tokens: int = 64
) -> PrefaceFeed:
    sources = [MemorySource("a", texts(9, 1)), MemorySource("b", texts(5, 2))]
    named: dict[str, Any] = {"micro_batch_tokens": 32, "tokens_per_step": tokens, "rank": rank, "world": world}
    section = DataSection(sources=["a", "b"], mix_strategy=strategy, workers=0)  # type: ignore[arg-type]
    feed = TextFeed(sources, TOKENIZER, section, loop=loop, should_stop=stop, **named)
    return PrefaceFeed(feed, "journal.md", TOKENIZER, section, should_stop=stop, **named)


def own_pairs() -> list[tuple[str, tuple[int, int]]]:
    pairs = expected_pairs(TOKENIZER, MemorySource("x", [text for _, text in ENTRIES]))
    names = {f"x:{at}": f"journal.md/{name}" for at, (name, _) in enumerate(ENTRIES)}
    return [(names[name], pair) for name, pair in pairs]


@pytest.mark.parametrize("length", [1, 8, 16])
@pytest.mark.parametrize("strategy", ["sequential", "round_robin"])
def test_the_preface_comes_first_and_everything_once(strategy: str, length: int) -> None:
    feed, plain = preface_feed(strategy=strategy), preface_feed(strategy=strategy)
    feed.begin(ENTRIES)
    trained = [pair for batches in iter(lambda: feed.next_step(length), []) for pair in step_pairs(batches)]
    data = [pair for batches in iter(lambda: plain.next_step(length), []) for pair in step_pairs(batches)]
    assert trained == own_pairs() + data
    assert feed.epoch == 1


def test_its_rows_are_its_own_source() -> None:
    feed = preface_feed()
    feed.begin(ENTRIES)
    assert feed.source_names == ["a", "b", "journal.md"]
    rows = [row for _ in range(4) for row in told(feed.next_step(8))]
    assert all((source == 2) == documents[0].startswith("journal.md/") for source, documents, *_ in rows)
    assert {source for source, *_ in rows} == {0, 2}


def test_the_last_rows_share_an_update_with_the_data() -> None:
    """A short update of a few tokens would else count as much as a whole one."""
    feed = preface_feed()
    feed.begin([("run#1", "few")])
    (first, *_) = iter(lambda: feed.next_step(8), [])
    assert {row[0] for row in told(first)} == {0, 2}
    assert feed.epoch == 1  # its end was not lost


def test_an_epoch_that_ends_just_there_is_not_lost() -> None:
    feed = preface_feed()
    steps = len(list(iter(lambda: feed.next_step(8), [])))
    feed = preface_feed()
    for _ in range(steps):
        feed.next_step(8)
    feed.begin([("run#1", "few")])
    assert {row[0] for row in told(feed.next_step(8))} == {2}
    assert feed.next_step(8) == []
    assert feed.epoch == 1


def test_without_texts_it_is_the_feed_itself() -> None:
    feed, plain = preface_feed(), preface_feed().feed
    feed.begin([])
    for _ in range(12):
        assert [told([b]) for b in feed.next_step(8)] == [told([b]) for b in plain.next_step(8)]
    assert (feed.epoch, feed.progress) == (plain.epoch, plain.progress)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("stop_at", range(9))
def test_it_goes_on_where_it_was(stop_at: int, loop: bool) -> None:
    whole, half = (preface_feed(loop=loop, strategy="round_robin") for _ in range(2))
    for feed in (whole, half):
        feed.begin(ENTRIES, 0.25)
    steps = [told(whole.next_step(8)) for _ in range(12)]
    for number in range(stop_at):
        assert told(half.next_step(8)) == steps[number]
    state = json.loads(json.dumps(half.state_dict()))
    resumed = preface_feed(loop=loop, strategy="round_robin")
    resumed.load_state_dict(state)
    assert resumed.progress == half.progress
    assert resumed.texts == ENTRIES
    assert [told(resumed.next_step(8)) for _ in range(stop_at, 12)] == steps[stop_at:]


def test_progress_goes_from_nothing_to_the_end() -> None:
    feed = preface_feed()
    feed.begin(ENTRIES, 0.4)
    seen = [feed.progress]
    for _ in iter(lambda: feed.next_step(8), []):
        seen.append(feed.progress)
    assert seen[0] == 0.0
    assert seen == sorted(seen)
    assert max(seen) == pytest.approx(1.0)
    assert any(0.1 < value < 0.4 for value in seen)


@pytest.mark.parametrize("back", range(8))
def test_rewinding_gives_the_same_step_again(back: int) -> None:
    feed, plain = preface_feed(strategy="round_robin"), preface_feed(strategy="round_robin")
    feed.begin(ENTRIES)
    plain.begin(ENTRIES)
    steps = [told(plain.next_step(8)) for _ in range(10)]
    given = [told(feed.next_step(8)) for _ in range(back + 1)]
    feed.rewind()
    given.pop()
    given += [told(feed.next_step(8)) for _ in range(back, 10)]
    assert given == steps


def test_an_interruption_loses_nothing() -> None:
    asked = itertools.count()
    stopping = False

    def stop() -> bool:
        return stopping and math.isqrt(count := next(asked)) ** 2 == count

    feed, plain = preface_feed(stop=stop), preface_feed()
    for one in (feed, plain):
        one.begin(ENTRIES)
    steps = [told(plain.next_step(8)) for _ in range(8)]
    given: list[Any] = []
    stopping = True
    for _ in range(200):
        if len(given) == 8:
            break
        try:
            given.append(told(feed.next_step(8)))
        except Interrupted:
            continue
    assert given == steps


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("strategy", ["sequential", "round_robin"])
def test_ranks_deal_it_as_any_rows(world: int, strategy: str) -> None:
    alone = preface_feed(strategy=strategy, loop=True)
    ranks = [preface_feed(strategy=strategy, loop=True, rank=rank, world=world) for rank in range(world)]
    for feed in (alone, *ranks):
        feed.begin(ENTRIES)
    for number in range(8):
        whole = told(alone.next_step(8))
        alone.settle(alone.ballot())
        given = [feed.next_step(8) for feed in ranks]
        assert len({len(batches) for batches in given}) == 1
        ballots = [feed.ballot() for feed in ranks]
        for feed in ranks:
            feed.settle([max(votes) for votes in zip(*ballots, strict=True)])
        assert len({feed.fingerprint() for feed in ranks}) == 1
        assert sorted(row for batches in given for row in told(batches)) == sorted(whole)
        if number == 2:  # and the state of all of them loads into one
            merged = merge_states([json.loads(json.dumps(feed.state_dict())) for feed in ranks])
            resumed = preface_feed(strategy=strategy, loop=True)
            resumed.load_state_dict(merged)
            copy = preface_feed(strategy=strategy, loop=True)
            copy.load_state_dict(json.loads(json.dumps(alone.state_dict())))
            assert told(resumed.next_step(8)) == told(copy.next_step(8))


def test_a_state_without_a_preface_loads() -> None:
    plain = preface_feed().feed
    plain.next_step(8)
    feed = preface_feed()
    feed.load_state_dict(plain.state_dict())
    assert told(feed.next_step(8)) == told(plain.next_step(8))
    assert feed.went_on
