"""The order of a run is the same for any number of ranks and workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmloop.data.files import Files
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source, SourceError
from lmloop.preset.schema import TokenizerSection
from lmloop.preset.sources import FilesSource
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.feed import merge_states
from lmloop.tokens.tokenizer import Tokenizer
from tests.tokens.sources import MemorySource, batch_rows, expected_pairs, row_pairs, texts
from tests.tokens.streams import Ranks, Stream, Told, assert_same_step

TOKENIZER = build_tokenizer(TokenizerSection(type="char"), [MemorySource("s", texts(50, 1))])
LENGTHS = [8, 8, 16, 1, 1, 64, 8, 8]
STREAM = [texts(30, 10 + file) for file in range(4)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("corpus")
    (here / "folder").mkdir()
    for index, text in enumerate(texts(1_500, 2, longest=20)):
        (here / "folder" / f"{index:04}.txt").write_text(text)
    lines = (json.dumps({"text": text}) + "\n" for text in texts(2_000, 3, longest=20))
    (here / "lines.jsonl").write_text("".join(lines))
    return here


def files(path: Path) -> Files:
    return Files(path.name, FilesSource(path=str(path)), Quarantine(None, 0.5), print)


def kinds(corpus: Path) -> dict[str, Callable[[], list[Source]]]:
    one: dict[str, Callable[[], Source]] = {
        "folder": lambda: files(corpus / "folder"),
        "lines": lambda: files(corpus / "lines.jsonl"),
        "one document": lambda: MemorySource("book", ["".join(texts(200, 4))]),
        "few documents": lambda: MemorySource("few", texts(7, 5)),
        "stream": lambda: Stream("stream", STREAM),
    }
    return {name: lambda make=make: [make()] for name, make in one.items()} | {
        "all": lambda: [make() for make in one.values()]
    }


MODES: dict[str, dict[str, Any]] = {
    "sequential": {"strategy": "sequential"},
    "weighted": {"strategy": "weighted", "source_weights": {"few": 0.3, "stream": 2.5}},
    "round robin": {},
    "epochs": {"loop": False},
}


def new(corpus: Path, kind: str, mode: str, world: int, workers: int = 0) -> Ranks:
    options = dict(MODES[mode])
    if kind != "all":
        options.pop("source_weights", None)
    make = kinds(corpus)[kind]
    return Ranks(lambda rank: make(), TOKENIZER, world=world, workers=workers, **options)


@cache
def alone(corpus: Path, kind: str, mode: str) -> list[list[Told]]:
    """The steps of one process."""
    ranks = new(corpus, kind, mode, world=1)
    return [ranks.step(LENGTHS[number % len(LENGTHS)])[0] for number in range(9)]


@pytest.mark.parametrize(
    ("kind", "mode", "world", "workers"),
    [("all", mode, *how) for mode in MODES for how in ((1, 2), (2, 0), (3, 0), (4, 2))]
    + [("all", mode, 16, 0) for mode in ("weighted", "epochs")]
    + [
        (kind, mode, *how)
        for kind in ("folder", "lines", "one document", "few documents", "stream")
        for mode in ("round robin", "epochs")
        for how in ((2, 2), (4, 0))
    ],
)
def test_the_same_rows_in_the_same_order(corpus: Path, kind: str, mode: str, world: int, workers: int) -> None:
    ranks = new(corpus, kind, mode, world, workers)
    for number, expected in enumerate(alone(corpus, kind, mode)):
        assert_same_step(ranks.step(LENGTHS[number % len(LENGTHS)]), expected)
    ranks.close()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["lines", "one document", "all"])
@pytest.mark.parametrize("mode", ["weighted", "epochs"])
def test_ranks_have_equal_shares_in_batches_that_fit(corpus: Path, kind: str, mode: str, world: int) -> None:
    ranks = new(corpus, kind, mode, world)
    for _ in range(6):
        rows = [len(mine) for mine in ranks.step(8)]
        assert rows == [64 // world] * world
        assert {len(batch.documents_B) for batches in ranks.batches for batch in batches} == {8}
        assert {len(batches) for batches in ranks.batches} == {8 // world}


# ---- every token once ----


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("mode", ["sequential", "epochs"])
def test_every_token_is_trained_once_an_epoch(mode: str, world: int) -> None:
    def sources(rank: int = 0) -> list[Source]:
        return [MemorySource("a", texts(40, 1)), MemorySource("b", ["".join(texts(9, 2))]), MemorySource("c", texts(3, 3))]

    expected = Counter(pair for source in sources() for pair in expected_pairs(TOKENIZER, source))  # type: ignore[arg-type]
    ranks = Ranks(sources, TOKENIZER, world=world, **MODES[mode])
    for epoch in range(2):
        seen: Counter[Any] = Counter()
        number = 0
        while True:
            ranks.step(LENGTHS[number % len(LENGTHS)])
            number += 1
            if not any(ranks.batches):
                break
            rows = [row for batches in ranks.batches for batch in batches for row in batch_rows(batch)]
            seen.update(pair for row in rows for pair in row_pairs(row))
        assert seen == expected
        assert [feed.epoch for feed in ranks.feeds] == [epoch + 1] * world


@pytest.mark.parametrize("world", [1, 2])
def test_parts_that_begin_again_pass_over_every_document_alike(corpus: Path, world: int) -> None:
    ranks, trained = new(corpus, "lines", "round robin", world), 0
    seen: set[str] = set()
    while ranks.feeds[0].epoch < 2:
        for rows in ranks.step(16):
            seen |= {name for row in rows for name in row[1]}
            trained += sum(sum(row[4]) for row in rows)
    content = files(corpus / "lines.jsonl")
    expected = {document.id: len(document.text) + 1 for document, _ in content.read({})}
    assert seen == set(expected)
    assert 2 * sum(expected.values()) <= trained < 2.6 * sum(expected.values())  # parts are not of one size


# ---- resuming ----


@pytest.mark.parametrize(("worlds", "workers"), [([2, 2, 2], 2), ([2, 1, 2], 0), ([1, 4, 3], 0)], ids=str)
@pytest.mark.parametrize("mode", ["weighted", "epochs"])
def test_resumed_with_any_number_of_ranks(corpus: Path, mode: str, worlds: list[int], workers: int) -> None:
    state: dict[str, Any] | None = None
    expected = iter(enumerate(alone(corpus, "all", mode)))  # three steps by each
    for world in worlds:
        ranks = new(corpus, "all", mode, world, workers)
        if state is not None:
            ranks.load(state)
            assert ranks.state() == state
        for number, rows in [next(expected) for _ in range(3)]:
            assert_same_step(ranks.step(LENGTHS[number % len(LENGTHS)]), rows)
        state = ranks.state()
        ranks.close()


def test_the_state_does_not_depend_on_the_ranks(corpus: Path) -> None:
    states = []
    for world in (1, 2, 4):
        ranks = new(corpus, "all", "weighted", world)
        for length in LENGTHS:
            ranks.step(length)
        states.append({**ranks.state(), "progress": 0.0})
    assert states[0] == states[1] == states[2]


def test_a_rank_saves_only_what_it_works(corpus: Path) -> None:
    ranks = new(corpus, "lines", "round robin", 2)
    ranks.step()
    states = [feed.state_dict() for feed in ranks.feeds]
    parts = [set(state["builder"]["lanes"]["lines.jsonl"]["parts"]) for state in states]
    assert [len(part) for part in parts] == [4, 4]
    assert not parts[0] & parts[1]
    assert set(merge_states(states)["builder"]["lanes"]["lines.jsonl"]["parts"]) == parts[0] | parts[1]


def test_a_source_that_is_absent_keeps_its_place() -> None:
    def make(names: str) -> Callable[[int], list[Source]]:
        return lambda rank: [Stream(name, STREAM) for name in names]

    ranks = Ranks(make("ab"), TOKENIZER, world=2)
    seen = [row for _ in range(3) for rows in ranks.step() for row in rows if row[0] == 1]
    without = Ranks(make("a"), TOKENIZER, world=2).load(ranks.state())
    without.step()
    again = Ranks(make("ab"), TOKENIZER, world=1).load(without.state())
    while again.feeds[0].epoch < 1:
        seen += [row for row in again.step()[0] if row[0] == 1]
    documents = {name for row in seen for name in row[1]}
    assert documents == {f"b:{file}:{line}" for file in range(4) for line in range(30)}
    first = [row[1][0] for row in seen if row[4][0] and row[1][0].startswith("b:0:")]
    assert first[: first.index("b:0:29")] == sorted(first[: first.index("b:0:29")], key=lambda name: int(name.split(":")[2]))


def test_a_source_that_has_grown_past_the_limit_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.data.shards.MIN_PARENTS", 20)
    source = MemorySource("a", texts(15, 1))
    ranks = Ranks(lambda rank: [source], TOKENIZER, world=1, tokens_per_step=64)
    ranks.step()
    source.texts += texts(15, 2)
    grown = Ranks(lambda rank: [source], TOKENIZER, world=1, tokens_per_step=64).load(ranks.state())
    documents = [name for _ in range(5) for row in grown.step()[0] for name in row[1]]
    assert documents == sorted(documents, key=lambda name: int(name.split(":")[1]))
    assert list(grown.state()["builder"]["lanes"]["a"]["parts"]) == ["0"]


@pytest.mark.parametrize("loops", [(False, True), (True, False)], ids=["epochs first", "budget first"])
def test_a_run_whose_budget_changes_its_kind_goes_on_in_its_small_sources(loops: tuple[bool, bool]) -> None:
    def new_ranks(loop: bool, world: int) -> Ranks:
        return Ranks(lambda rank: [MemorySource("a", texts(60, 1)), MemorySource("b", texts(60, 2))], TOKENIZER,
                     world=world, loop=loop, tokens_per_step=128)  # fmt: skip

    before, after, whole = new_ranks(loops[0], 2), new_ranks(loops[1], 1), new_ranks(loops[0], 1)
    seen = [row for _ in range(4) for rows in before.step() for row in rows]
    after.load(before.state())
    seen += [row for _ in range(4) for row in after.step()[0]]
    assert Counter(seen) == Counter(row for _ in range(8) for row in whole.step()[0])


def test_epochs_after_a_budget_begin_a_source_of_many_parts_anew(corpus: Path) -> None:
    ranks = new(corpus, "lines", "round robin", 2)
    ranks.step()
    epochs = new(corpus, "lines", "epochs", 2).load(ranks.state())
    assert [row for rows in epochs.step() for row in rows] == alone(corpus, "lines", "epochs")[0]
    assert epochs.feeds[0].notices == ["source 'lines.jsonl' begins anew: it was read in 8 parts, and epochs need it whole"]


# ---- parts that give nothing ----


def test_an_empty_part_is_left_out_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """All documents of one part are too short."""
    monkeypatch.setattr("lmloop.data.shards._in_shard", lambda index, count: lambda name: int(name[2:]) % count == index)

    def make(rank: int) -> list[Source]:
        return [MemorySource("a", ["x" if index % 8 == 5 else "abc de" for index in range(1_200)])]

    steps: list[list[list[Told]]] = []
    for world in (1, 2, 4):
        ranks = Ranks(make, TOKENIZER, world=world, min_text_length=3, workers=2)
        steps.append([[row for rows in ranks.step() for row in rows] for _ in range(4)])
        assert ranks.feeds[0].notices == []
        assert len(steps[-1][0]) == 64 - 8  # the rows of the part that gave none are missing in the step that met it
        assert [len(rows) for rows in steps[-1][1:]] == [64] * 3
        assert ranks.state()["builder"]["left_out"] == {"a": {"5": 1}}
        resumed = Ranks(make, TOKENIZER, world=world, min_text_length=3).load(ranks.state())
        assert sum(len(rows) for rows in resumed.step()) == 64
        assert sum(feed.skipped["a"] for feed in ranks.feeds) == 150
        ranks.close()
    for one, *others in zip(*steps, strict=True):
        assert all(Counter(other) == Counter(one) for other in others)


def streams_that_die(rank: int, *, on: Sequence[int], files: int = 4, others: bool = True) -> list[Source]:
    """The stream `s` breaks off in its third and fourth file, for some ranks."""
    dying = {file: 12 for file in range(files) if files == 1 or file > 1} if rank in on else {}
    more: list[Source] = [MemorySource("m", texts(30, 7))] if others else []
    return [Stream("s", STREAM[:files], dying), *more]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("files", [1, 4])
def test_a_stream_that_dies_on_one_rank_is_left_out_on_all(files: int, workers: int) -> None:
    """A part that only one rank works, and one that both do."""
    ranks = Ranks(lambda rank: streams_that_die(rank, on=[1], files=files), TOKENIZER, world=2, workers=workers)
    sources: list[Counter[int]] = []
    for _ in range(30):
        rows = [row for mine in ranks.step() for row in mine]
        sources.append(Counter(row[0] for row in rows))
    for feed in ranks.feeds:
        assert len(feed.notices) >= 1
        assert ("'s' broke off: training goes on without it" in feed.notices[0]) == (files == 1)
        assert ("of its 4 parts broke off" in feed.notices[0]) == (files == 4)
    left = ranks.state()["builder"]["left_out"]["s"]
    assert set(left.values()) == {2}
    assert sources[-1][0] == (0 if files == 1 else sources[-1][0])
    assert sources[-1].total() == 64
    ranks.close()


@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_that_broke_off_goes_on_at_its_place_in_the_next_session(world: int) -> None:
    ranks = Ranks(lambda rank: streams_that_die(rank, on=[0, 1]), TOKENIZER, world=world)
    before = [row for _ in range(12) for rows in ranks.step() for row in rows if row[0] == 0]
    done = [int(name[4:]) for row in before for name in row[1] if name.startswith("s:2:")]
    assert max(done) < 12
    alive = Ranks(lambda rank: streams_that_die(rank, on=[]), TOKENIZER, world=1).load(ranks.state())
    after: list[int] = []
    while 29 not in after:
        after += [int(name[4:]) for row in alive.step()[0] for name in row[1] if name.startswith("s:2:")]
    assert after[0] - max(done) in (0, 1)  # 0: in the middle of a document
    assert sorted(set(done + after)) == list(range(30))


@pytest.mark.parametrize("workers", [0, 1])
def test_when_all_have_died_the_run_ends_where_the_last_trained_step_left_it(workers: int) -> None:
    def make(rank: int) -> list[Source]:
        return streams_that_die(rank, on=[0, 1], files=1, others=False)

    ranks = Ranks(make, TOKENIZER, world=2, workers=workers, tokens_per_step=128)
    state, trained = ranks.state(), []

    def train() -> None:
        nonlocal state
        while True:
            trained.extend(row for rows in ranks.step() for row in rows)
            state = ranks.state()

    with pytest.raises(SourceError, match=r"no source is left: 's' broke off: check the network"):
        train()
    # The step in which it broke off is not trained; what it would have held comes again.
    alive = Ranks(lambda rank: streams_that_die(rank, on=[], files=1, others=False), TOKENIZER, world=1, tokens_per_step=128)
    expected = [alive.step()[0] for _ in range(len(trained) // 16 + 1)]
    alive.load(state)
    assert alive.step()[0] == expected[-1]


def test_a_source_that_can_no_longer_be_read_is_left_out_with_its_reason() -> None:
    class Vanishing(MemorySource):
        def read(self, position: Any, epoch: int = 0) -> Iterator[Any]:
            for index, pair in enumerate(super().read(position, epoch)):
                if index == 12:
                    raise SourceError("source 'v': its folder is gone")
                yield pair

    def make(rank: int) -> list[Source]:
        return [Vanishing("v", texts(30, 1)), MemorySource("m", texts(30, 2))]

    ranks = Ranks(make, TOKENIZER, world=2, tokens_per_step=128)
    for _ in range(12):
        rows = [row for mine in ranks.step() for row in mine]
    assert {row[0] for row in rows} == {1}
    assert ranks.feeds[0].notices == ["source 'v': its folder is gone: training goes on without it"]
    only = Ranks(lambda rank: make(rank)[:1], TOKENIZER, world=1)
    with pytest.raises(SourceError, match="no source is left: source 'v': its folder is gone"):
        only.step()


def test_ranks_that_were_fed_from_different_data_show_it() -> None:
    def make(rank: int) -> list[Source]:
        return [MemorySource("a", ["".join(texts(60, 4 + rank))])]

    with pytest.raises(AssertionError):
        Ranks(make, TOKENIZER, world=2).step()


def test_a_step_that_is_not_trained_comes_again(corpus: Path) -> None:
    for workers in (0, 2):
        ranks = new(corpus, "all", "weighted", 2, workers)
        first, state, second = ranks.step(), ranks.state(), ranks.step()
        for feed in ranks.feeds:
            feed.rewind()
        assert ranks.state() == state
        assert ranks.step() == second != first
        ranks.close()


# ---- what a rank need not do ----


class Recording(Tokenizer):
    """Remembers the texts that it encoded."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER._backend, TOKENIZER._config)
        self.seen: list[str] = []

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.seen += texts
        return super().encode_many(texts)


@pytest.mark.parametrize("world", [2, 4])
def test_no_rank_encodes_what_it_does_not_work(world: int) -> None:
    tokenizers = [Recording() for _ in range(world)]
    content = [f"{text} {index}" for index, text in enumerate(texts(1_100, 1))]
    streams = [[f"{text} {file} {index}" for index, text in enumerate(part)] for file, part in enumerate(STREAM)]
    ranks = Ranks(lambda rank: [MemorySource("a", content), Stream("s", streams)], tokenizers, world=world)
    for _ in range(40):
        ranks.step(16)
    seen = [set(tokenizer.seen) for tokenizer in tokenizers]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(content) + sum(map(len, streams))
    assert all(len(tokenizer.seen) == len(mine) for tokenizer, mine in zip(tokenizers, seen, strict=True))
