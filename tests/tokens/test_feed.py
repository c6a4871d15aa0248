from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lmloop.data.document import Document, Position
from lmloop.data.source import SourceError
from lmloop.preset.schema import DataSection, TokenizerSection
from lmloop.tokens.batch import Batch
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.feed import Interrupted, TextFeed
from tests.tokens.sources import MemorySource, batch_rows, expected_pairs, step_pairs, texts

TOKENIZER = build_tokenizer(TokenizerSection(type="char"), [MemorySource("s", texts(50, 1))])
STRATEGIES = ["sequential", "round_robin", "weighted"]
LENGTHS = [4, 4, 4, 16, 1, 1, 8, 8]


def three_sources() -> list[MemorySource]:
    return [MemorySource("a", texts(9, 1)), MemorySource("b", texts(3, 2)), MemorySource("c", texts(14, 3))]


def new_feed(sources: list[Any], *, strategy: str = "round_robin", workers: int = 0, loop: bool = False, tokens: int = 32,
             accumulation: int = 2, weights: dict[str, float] | None = None,
             stop: Callable[[], bool] | None = None, min_text_length: int = 0) -> TextFeed:  # fmt: skip
    section = DataSection(
        sources=[source.name for source in sources],
        mix_strategy=strategy,  # type: ignore[arg-type]
        source_weights=weights,
        workers=workers,
        min_text_length=min_text_length,
    )
    return TextFeed(
        sources,
        TOKENIZER,
        section,
        micro_batch_tokens=tokens,
        tokens_per_step=tokens * accumulation,
        loop=loop,
        should_stop=stop,
    )


def weights_for(strategy: str) -> dict[str, float] | None:
    return {"sequential": {"b": 2.0}, "weighted": {"a": 0.7, "c": 3.0}}.get(strategy)


def step(feed: TextFeed, length: int) -> list[Batch]:
    """A step as the loop takes it."""
    batches = feed.next_step(length)
    feed.settle(feed.ballot())
    return batches


def told(feed: TextFeed, batches: list[Batch]) -> Any:
    """All there is to compare of a step."""
    rows = [
        (
            row.source,
            row.documents,
            *(array.tolist() for array in (row.tokens_T, row.targets_T, row.weights_T, row.segments_T)),
        )
        for batch in batches
        for row in batch_rows(batch)
    ]
    return rows, [len(batch.documents_B) for batch in batches], feed.epoch, feed.progress, feed.skipped


@pytest.fixture
def closing() -> Iterator[Callable[[TextFeed], TextFeed]]:
    feeds: list[TextFeed] = []

    def remember(feed: TextFeed) -> TextFeed:
        feeds.append(feed)
        return feed

    yield remember
    for feed in feeds:
        feed.close()


Closing = Callable[[TextFeed], TextFeed]


@pytest.mark.parametrize("lengths", [[1], [8], [64], LENGTHS], ids=str)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_pair_is_trained_once_an_epoch(strategy: str, workers: int, lengths: list[int], closing: Closing) -> None:
    sources = three_sources()
    feed = closing(new_feed(sources, strategy=strategy, workers=workers, weights=weights_for(strategy)))
    readings = {"b": 2} if strategy == "sequential" else {}
    expected = {s.name: Counter(expected_pairs(TOKENIZER, s)) for s in sources}
    for epoch in range(2):
        seen, number = [], 0
        while batches := feed.next_step(lengths[number % len(lengths)]):
            length = lengths[number % len(lengths)]
            rows = [len(batch.documents_B) for batch in batches]
            assert all(batch.tokens_BT.shape[1] == length for batch in batches)
            assert sum(rows) <= max(64 // length, 1)
            assert max(rows) - min(rows) <= 1  # also of the last, shorter step
            assert len(rows) == -(-sum(rows) // max(32 // length, 1))
            assert feed.epoch == epoch
            seen += step_pairs(batches)
            number += 1
        assert feed.epoch == epoch + 1
        by_source = {s.name: Counter(pair for pair in seen if pair[0].startswith(s.name)) for s in sources}
        for name, pairs in expected.items():
            times = readings.get(name, 1)
            assert by_source[name] == Counter({pair: count * times for pair, count in pairs.items()}), name


def test_sequential_is_the_order_of_the_sources(closing: Closing) -> None:
    sources = three_sources()
    feed, seen = closing(new_feed(sources, strategy="sequential", loop=True)), []
    while batches := feed.next_step(8):
        seen += step_pairs(batches)
    assert seen == [pair for source in sources for pair in expected_pairs(TOKENIZER, source)]


def test_round_robin_takes_turns_by_rows(closing: Closing) -> None:
    feed = closing(new_feed(three_sources(), loop=True))
    rows = [source for _ in range(5) for batch in feed.next_step(8) for source in batch.source_B.tolist()]
    assert rows == [index % 3 for index in range(len(rows))]


def test_weighted_shares_of_rows(closing: Closing) -> None:
    feed = closing(new_feed(three_sources(), strategy="weighted", weights={"a": 6.0, "b": 1.0, "c": 3.0}, loop=True))
    count = Counter(source for _ in range(25) for batch in feed.next_step(8) for source in batch.source_B.tolist())
    assert count == {0: 120, 1: 20, 2: 60}


@pytest.mark.parametrize("loop", [False, True], ids=["epochs", "loop"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_state_at_any_step_gives_the_same_rest_with_any_workers(strategy: str, loop: bool, closing: Closing) -> None:
    def new(workers: int) -> TextFeed:
        weights = weights_for(strategy)
        feed = new_feed(three_sources(), strategy=strategy, workers=workers, loop=loop, weights=weights, min_text_length=4)
        return closing(feed)

    feed, steps = new(0), []
    for number in range(40):
        state = json.dumps(feed.state_dict())
        length = LENGTHS[number % len(LENGTHS)]
        steps.append((state, length, told(feed, feed.next_step(length))))
    assert feed.epoch >= 1
    for workers in (0, 1, 2):
        for start in range(0, 40, 1 if workers == 0 else 5):
            resumed = new(workers)
            resumed.load_state_dict(json.loads(steps[start][0]))
            for state, length, expected in steps[start : start + 8]:
                assert resumed.state_dict() == json.loads(state)
                assert told(resumed, resumed.next_step(length)) == expected
            resumed.close()


@pytest.mark.parametrize("loop", [False, True], ids=["epochs", "loop"])
def test_a_step_larger_than_the_corpus(loop: bool, closing: Closing) -> None:
    sources = [MemorySource("a", ["abc", "de"]), MemorySource("b", ["xyz"])]
    feed = closing(new_feed(sources, tokens=60, accumulation=1, loop=loop))
    batches = feed.next_step(2)
    if loop:
        assert [len(batch.documents_B) for batch in batches] == [30]
        assert Counter(batches[0].source_B.tolist()) == {0: 15, 1: 15}
        assert feed.epoch == 3  # of a, which has 4 rows; b has 2
    else:
        assert Counter(step_pairs(batches)) == Counter(p for s in sources for p in expected_pairs(TOKENIZER, s))
        assert feed.next_step(2) == []


def test_accumulation_cuts_the_same_rows(closing: Closing) -> None:
    one = closing(new_feed(three_sources(), tokens=64, accumulation=1, loop=True))
    two = closing(new_feed(three_sources(), tokens=32, accumulation=2, loop=True))
    for _ in range(6):
        assert told(one, one.next_step(8))[0] == told(two, two.next_step(8))[0]


def test_batches_hold_what_the_model_needs(closing: Closing) -> None:
    batch = closing(new_feed(three_sources())).next_step(16)[0]
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == batch.source_B.dtype == torch.int64
    assert batch.weights_BT.dtype == torch.float32
    assert batch.segments_BT is not None
    assert batch.segments_BT.dtype == torch.int32
    assert closing(new_feed(three_sources())).next_step(1)[0].segments_BT is None


# ---- reading ahead ----


class SlowSource(MemorySource):
    """Waits before each document until it is let go."""

    def __init__(self, name: str, texts: list[str]) -> None:
        super().__init__(name, texts)
        self.go = threading.Event()

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        for pair in super().read(position, epoch):
            self.go.wait(10)
            yield pair


def test_steps_are_ready_before_they_are_asked_for(closing: Closing) -> None:
    class Delayed(MemorySource):
        def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
            time.sleep(0.3)
            yield from super().read(position, epoch)

    feed = closing(new_feed([Delayed("a", texts(40, 1))], workers=1))
    feed.next_step(4)
    first = feed.wait_s
    assert first > 0.25
    time.sleep(0.2)
    feed.next_step(4)
    assert feed.wait_s - first < 0.1
    feed.next_step(8)  # another length: what was read ahead is of no use
    assert feed.wait_s - first > 0.25


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_of_the_source_surfaces_and_can_be_retried(workers: int, closing: Closing) -> None:
    broken, whole = MemorySource("a", texts(20, 1), fail_at=12), MemorySource("a", texts(20, 1))
    feed, expected = closing(new_feed([broken], workers=workers)), closing(new_feed([whole]))

    def train() -> None:
        while True:
            batches = feed.next_step(4)
            assert told(feed, batches) == told(expected, expected.next_step(4))

    with pytest.raises(OSError, match="a breaks at 12"):
        train()
    broken.fail_at = None
    assert told(feed, feed.next_step(4)) == told(expected, expected.next_step(4))


@pytest.mark.parametrize("change_length", [False, True])
def test_waiting_can_be_interrupted_and_no_step_is_lost(change_length: bool, closing: Closing) -> None:
    stop = threading.Event()
    source = SlowSource("a", texts(20, 1))
    source.go.set()
    feed = closing(new_feed([source], workers=1, stop=stop.is_set))
    expected = closing(new_feed([MemorySource("a", texts(20, 1))]))
    if change_length:
        assert told(feed, feed.next_step(4)) == told(expected, expected.next_step(4))
    source.go.clear()
    stop.set()
    started = time.perf_counter()
    with pytest.raises(Interrupted):
        feed.next_step(8)
    assert time.perf_counter() - started < 2
    stop.clear()
    source.go.set()
    for _ in range(3):
        assert told(feed, feed.next_step(4)) == told(expected, expected.next_step(4))


def test_interrupted_without_workers(closing: Closing) -> None:
    stop = threading.Event()
    feed = closing(new_feed([MemorySource("a", texts(20, 1))], stop=stop.is_set))
    expected = closing(new_feed([MemorySource("a", texts(20, 1))]))
    stop.set()
    with pytest.raises(Interrupted):
        feed.next_step(4)
    stop.clear()
    assert told(feed, feed.next_step(4)) == told(expected, expected.next_step(4))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_of_the_next_epoch_is_read_before_it_begins(strategy: str, workers: int, closing: Closing) -> None:
    """What is written between two epochs is read in the next."""
    source = MemorySource("a", ["abc"])
    feed = closing(new_feed([source], strategy=strategy, workers=workers))
    while feed.next_step(4):
        pass
    time.sleep(0.1)
    assert source.opened == 1
    source.texts = ["new"]
    assert step_pairs(feed.next_step(4)) == expected_pairs(TOKENIZER, source)


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    feed = new_feed(three_sources(), workers=2, loop=True)
    feed.next_step(4)
    state = feed.state_dict()
    feed.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert feed.state_dict() == state


# ---- sources without documents, other sources, progress ----


@pytest.mark.parametrize("loop", [False, True], ids=["epochs", "loop"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_source_is_dropped_with_one_notice(strategy: str, workers: int, loop: bool, closing: Closing) -> None:
    sources = [MemorySource("a", []), MemorySource("b", texts(6, 2)), MemorySource("short", ["x", "y"])]
    feed = closing(new_feed(sources, strategy=strategy, workers=workers, loop=loop, min_text_length=2))
    for _ in range(30):
        for batch in step(feed, 4):
            assert set(batch.source_B.tolist()) == {1}
    assert len(feed.notices) == 2
    assert "'a' gave no document:" in feed.notices[0]
    assert "data.min_text_length" in feed.notices[1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loop", [False, True])
def test_sources_without_any_document_are_an_error(strategy: str, loop: bool, workers: int, closing: Closing) -> None:
    feed = closing(new_feed([MemorySource("a", []), MemorySource("b", [])], strategy=strategy, loop=loop, workers=workers))
    state = feed.state_dict()
    for _ in range(2):
        with pytest.raises(SourceError, match=r"no source \('a', 'b'\) gives a document: correct data.sources"):
            step(feed, 4)
        assert feed.state_dict() == state


def test_a_source_that_is_empty_at_first_is_tried_again_in_the_next_epoch(closing: Closing) -> None:
    journal, real = MemorySource("journal", []), MemorySource("real", texts(6, 2))
    feed = closing(new_feed([journal, real], strategy="sequential", workers=1))
    while feed.next_step(8):
        pass
    journal.texts = ["an entry"]
    assert feed.next_step(8)[0].documents_B[0] == ("journal:0",)


def test_sources_that_stay_go_on_from_their_place_when_others_change(closing: Closing) -> None:
    a, b, c = three_sources()
    feed = closing(new_feed([a, b], loop=True))
    seen = [pair for _ in range(4) for pair in step_pairs(feed.next_step(4)) if pair[0].startswith("a")]
    changed = closing(new_feed([c, a], loop=True))
    changed.load_state_dict(feed.state_dict())
    batches = changed.next_step(4)
    assert batches[0].source_B.tolist()[:4] == [0, 1, 0, 1]
    seen += [pair for pair in step_pairs(batches) if pair[0].startswith("a")]
    assert seen == expected_pairs(TOKENIZER, a)[: len(seen)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_progress_grows_evenly_to_the_end_of_the_epoch(strategy: str, closing: Closing) -> None:
    sources = [MemorySource("small", texts(5, 1)), MemorySource("large", texts(300, 2))]
    total = sum(len(expected_pairs(TOKENIZER, source)) for source in sources)
    feed = closing(new_feed(sources, strategy=strategy))
    for epoch in range(2):
        done, before = 0, 0.0
        while batches := feed.next_step(8):
            done += sum(batch.trained_tokens for batch in batches)
            assert feed.progress >= before
            before = feed.progress
            if epoch == 1 or strategy != "sequential":  # under sequential the sizes are known after the first epoch
                assert feed.progress == pytest.approx(done / total, abs=0.05)
        assert before == pytest.approx(1.0)
        assert (feed.epoch, feed.progress) == (epoch + 1, 0.0)


def test_one_token_rows_are_fast(closing: Closing) -> None:
    """16,384 rows of one token in each step: slices of arrays, not objects."""
    feed = closing(new_feed([MemorySource("a", ["abcde " * 40_000])], tokens=16_384, accumulation=1, loop=True))
    feed.next_step(1)
    for _ in range(20):  # the whole document is encoded and kept
        feed.next_step(1)
    started = time.perf_counter()
    for _ in range(10):
        assert feed.next_step(1)[0].tokens_BT.shape == (16_384, 1)
    assert (time.perf_counter() - started) / 10 < 0.1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_feed_in_use_can_be_put_back(workers: int, closing: Closing) -> None:
    feed = closing(new_feed(three_sources(), workers=workers))
    feed.next_step(4)
    state = feed.state_dict()
    first = [told(feed, feed.next_step(4)) for _ in range(5)]
    feed.load_state_dict(state)
    assert [told(feed, feed.next_step(4)) for _ in range(5)] == first


def test_interrupted_while_the_length_changes_and_then_the_old_length(closing: Closing) -> None:
    class Stalling(MemorySource):
        """Stalls at document 850, which is read ahead for the second step."""

        stalled, go = threading.Event(), threading.Event()

        def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
            for document, after in super().read(position, epoch):
                if after["next"] == 850:
                    self.stalled.set()
                    self.go.wait(10)
                yield document, after

    stop = threading.Event()
    source, same = Stalling("a", texts(1_200, 1)), MemorySource("a", texts(1_200, 1))
    feed = closing(new_feed([source], workers=1, tokens=4096, stop=stop.is_set))
    expected = closing(new_feed([same], tokens=4096))
    assert told(feed, feed.next_step(4)) == told(expected, expected.next_step(4))
    assert source.stalled.wait(10)
    stop.set()
    with pytest.raises(Interrupted):
        feed.next_step(8)  # the thread that reads in rows of 4 cannot be ended yet
    stop.clear()
    source.go.set()
    for _ in range(5):  # more than the thread had ready
        assert told(feed, feed.next_step(4)) == told(expected, expected.next_step(4))


def test_what_was_reported_as_done_stays_done(closing: Closing) -> None:
    class Boastful(MemorySource):
        """Its first documents claim to be most of it."""

        def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
            for document, after in super().read(position, epoch):
                claimed = 0.9 if after["next"] < 5 else document.progress
                yield Document(document.id, document.parent, document.text, claimed), after

    def new() -> TextFeed:
        return closing(new_feed([Boastful("a", ["abcdefg"] * 20)], tokens=8, accumulation=1))

    feed, before = new(), 0.0
    while feed.next_step(8):
        assert feed.progress >= before
        before = feed.progress
        resumed = new()
        resumed.load_state_dict(feed.state_dict())
        resumed.next_step(8)
        assert resumed.progress >= before or resumed.epoch == 1
    assert before == 1.0
