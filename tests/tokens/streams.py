"""A stream in memory that can be read in parts and can break off, and feeds of several ranks in one process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmloop.data.document import Document, Position
from lmloop.data.source import Source
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import Batch
from lmloop.tokens.feed import TextFeed, merge_states
from lmloop.tokens.tokenizer import Tokenizer
from tests.tokens.sources import batch_rows


class Stream:
    """Texts in files, read one after the other or each as a part. `die_at` is where each reading breaks off, by document."""

    def __init__(self, name: str, files: Sequence[Sequence[str]], die_at: dict[int, int] | None = None) -> None:
        self.name = name
        self.files = files
        self.die_at = die_at or {}
        self.broken = False
        self.first, self.step = 0, 1

    def parents(self) -> None:
        return None

    def shard_count(self, limit: int) -> int:
        return min(len(self.files), limit)

    def shard(self, index: int, count: int) -> Stream:
        part = Stream(self.name, self.files, self.die_at)
        part.first, part.step = index, count
        return part

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        file, line = position.get("at", [self.first, 0])
        while file < len(self.files):
            if self.broken:
                return
            if line == self.die_at.get(file):
                self.broken = True
                return
            if line == len(self.files[file]):
                file, line = file + self.step, 0
                continue
            name = f"{self.name}:{file}:{line}"
            line += 1
            yield Document(name, name, self.files[file][line - 1], 0.0), {"at": [file, line]}


Told = tuple[Any, ...]
"""All there is to compare of a row."""


def told(batches: Sequence[Batch]) -> list[Told]:
    """The rows of a step that have a weight."""
    return [
        (
            row.source,
            row.documents,
            *(tuple(array.tolist()) for array in (row.tokens_T, row.targets_T, row.weights_T, row.segments_T)),
        )
        for batch in batches
        for row in batch_rows(batch)
        if row.weights_T.any()
    ]


class Ranks:
    """The feeds of all ranks, taken through their steps as the loop does it: agree, settle, compare."""

    def __init__(
        self,
        make: Callable[[int], Sequence[Source]],
        tokenizer: Tokenizer | Sequence[Tokenizer],
        *,
        world: int,
        strategy: str = "round_robin",
        loop: bool = True,
        workers: int = 0,
        micro_batch_tokens: int = 64,
        tokens_per_step: int = 512,
        **section: Any,
    ) -> None:
        """`make`: the sources as a rank has them."""
        self.feeds = []
        for rank in range(world):
            sources = make(rank)
            self.feeds.append(
                TextFeed(
                    sources,
                    tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer[rank],
                    DataSection(
                        sources=[source.name for source in sources],
                        mix_strategy=strategy,  # type: ignore[arg-type]
                        workers=workers,
                        **section,
                    ),
                    micro_batch_tokens=micro_batch_tokens,
                    tokens_per_step=tokens_per_step,
                    loop=loop,
                    rank=rank,
                    world=world,
                )
            )
        self.batches: list[list[Batch]] = []

    def step(self, length: int = 8) -> list[list[Told]]:
        """The rows that each rank trains."""
        self.batches = [feed.next_step(length) for feed in self.feeds]
        assert len({len(batches) for batches in self.batches}) == 1
        ballots = [feed.ballot() for feed in self.feeds]
        for feed in self.feeds:
            feed.settle([max(votes) for votes in zip(*ballots, strict=True)])
        assert len({feed.fingerprint() for feed in self.feeds}) == 1
        assert len({feed.epoch for feed in self.feeds}) == 1
        return [told(batches) for batches in self.batches]

    def state(self) -> dict[str, Any]:
        return merge_states([json.loads(json.dumps(feed.state_dict())) for feed in self.feeds])

    def load(self, state: dict[str, Any]) -> Ranks:
        for feed in self.feeds:
            feed.load_state_dict(json.loads(json.dumps(state)))
        return self

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()


def assert_same_step(ranks: list[list[Told]], alone: list[Told]) -> None:
    """The ranks' rows are together those of one process, and each rank has its own in the same order."""
    assert Counter(row for rows in ranks for row in rows) == Counter(alone)
    for rows in ranks:
        following = iter(alone)
        assert all(row in following for row in rows)
