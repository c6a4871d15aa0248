"""Old data among the new: its share of the rows, whatever ends, and the same again after a resume."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lmloop.data.source import SourceError
from lmloop.preset.schema import DataSection
from lmloop.tokens.feed import TextFeed
from tests.tokens.sources import MemorySource, batch_rows, expected_pairs, step_pairs, texts
from tests.tokens.streams import told
from tests.tokens.test_feed import TOKENIZER

NEW = {"a": (30, 1), "b": (8, 2)}
OLD = {"old": (4, 3), "older": (12, 4)}


def replay_feed(
    *,
    strategy: str,
    loop: bool,
    share: float = 0.25,
    old: dict[str, tuple[int, int]] = OLD,
    new: dict[str, tuple[int, int]] = NEW,
) -> TextFeed:
    section = DataSection.model_validate(
        {
            "sources": list(new),
            "mix_strategy": strategy,
            "workers": 0,
            "replay": {"sources": list(old), "share": share},
            "source_weights": {"a": 2.0} if strategy == "sequential" and "a" in new else None,
        }
    )
    sources = [MemorySource(name, texts(*how)) for name, how in {**new, **old}.items()]
    return TextFeed(sources, TOKENIZER, section, micro_batch_tokens=32, tokens_per_step=64, loop=loop)


def sources_of(feed: TextFeed, steps: int, length: int = 8) -> list[str]:
    """The source of each row, in order; an epoch's end is ''."""
    rows: list[str] = []
    for _ in range(steps):
        batches = feed.next_step(length)
        feed.settle(feed.ballot())
        names = [feed.source_names[row.source] for batch in batches for row in batch_rows(batch)]
        rows += names or [""]
    return rows


@pytest.mark.parametrize("share", [0.05, 0.25, 0.7])
@pytest.mark.parametrize(
    ("strategy", "loop"), [("sequential", False), ("round_robin", False), ("round_robin", True), ("weighted", True)]
)
def test_its_share_of_the_rows_is_exact_at_every_moment(strategy: str, loop: bool, share: float) -> None:
    rows = sources_of(replay_feed(strategy=strategy, loop=loop, share=share), 60)
    seen = old = 0
    for name in rows:
        if not name:
            seen = old = 0  # an epoch counts for itself
            continue
        seen, old = seen + 1, old + (name in OLD)
        # Two old sources, each off by less than a row.
        assert abs(old - share * seen) < 2, (strategy, share, seen, old)
    shares = Counter(rows)
    assert abs(shares["old"] - shares["older"]) <= 4


def test_an_epoch_is_one_of_the_new_data() -> None:
    """Every pair of the new data once (twice, where it is read twice); the old begins again, and does not begin anew with
    the next epoch."""
    for strategy, readings in (("round_robin", 1), ("sequential", 2)):
        feed = replay_feed(strategy=strategy, loop=False)
        old: list[tuple[str, tuple[int, int]]] = []
        for epoch in range(2):
            pairs = [pair for batches in iter(lambda feed=feed: feed.next_step(8), []) for pair in step_pairs(batches)]
            assert feed.epoch == epoch + 1
            for name, how in NEW.items():
                expected = expected_pairs(TOKENIZER, MemorySource(name, texts(*how))) * (readings if name == "a" else 1)
                assert [pair for pair in pairs if pair[0].startswith(f"{name}:")] == expected
            old += [pair for pair in pairs if pair[0].startswith("old:")]
        whole = expected_pairs(TOKENIZER, MemorySource("old", texts(*OLD["old"])))
        assert old == (whole * (len(old) // len(whole) + 1))[: len(old)]
        assert len(old) > len(whole)


@pytest.mark.parametrize("stop_at", [1, 4, 9, 20])
@pytest.mark.parametrize(("strategy", "loop"), [("sequential", False), ("round_robin", False), ("weighted", True)])
def test_it_goes_on_where_it_was(strategy: str, loop: bool, stop_at: int) -> None:
    whole, half = (replay_feed(strategy=strategy, loop=loop) for _ in range(2))
    steps = [told(whole.next_step(8)) for _ in range(30)]
    for _ in range(stop_at):
        half.next_step(8)
    resumed = replay_feed(strategy=strategy, loop=loop)
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    assert [told(resumed.next_step(8)) for _ in range(stop_at, 30)] == steps[stop_at:]


def test_old_data_without_a_document_ends_nothing() -> None:
    feed = replay_feed(strategy="round_robin", loop=False, old={"old": (0, 1)})
    rows = sources_of(feed, 60)
    assert "old" not in rows
    assert "" in rows
    assert any("'old' gave no document" in notice for notice in feed.notices)


def test_new_data_without_a_document_is_an_error() -> None:
    feed = replay_feed(strategy="round_robin", loop=False, new={"a": (0, 1)})
    with pytest.raises(SourceError, match="no source"):
        sources_of(feed, 20)


def test_sequential_keeps_the_order_of_the_new_data() -> None:
    rows = [name for name in sources_of(replay_feed(strategy="sequential", loop=False), 90) if name not in OLD]
    first_epoch = rows[: rows.index("")]
    assert first_epoch == sorted(first_epoch)
    assert set(first_epoch) == set(NEW)
