"""What the ranks take in for an update, and what they decide alike before it: one small exchange a step.

No rank may leave the common path by itself, or the others wait for it in vain. So a signal to one, an error in reading on
one, and a save that the first one's clock asks for are told to all, and all do the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmloop.data.quarantine import TooManyBadRows
from lmloop.data.source import SourceError
from lmloop.durable import in_words
from lmloop.objectives.base import Objective
from lmloop.processes import Processes
from lmloop.tokens.batch import Batch
from lmloop.tokens.feed import Feed, Interrupted


@dataclass(frozen=True)
class Intake:
    """One update's rows of this rank, and what all ranks know of it. Without batches: an epoch has ended.

    counts: what the terms' sums are divided by; the mean over the ranks, since gradients are averaged over them. tokens,
    source_rows: trained tokens and rows of each source, of all ranks. problem: why no rank has rows, and the run ends;
    `sound`: the state may be saved all the same. stop: asked to stop. save_due: the first rank's clock says that it is time.
    """

    batches: list[Batch] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    source_rows: list[int] = field(default_factory=list)
    problem: str = ""
    sound: bool = True
    stop: bool = False
    save_due: bool = False


class Inlet:
    """Takes in one update after the other.

    `collect` is called by all ranks when `waiting` says on one of them that it has something to tell. `tell` is called
    after each update's rows were taken in: something may have been heard about the data.
    """

    def __init__(
        self,
        feed: Feed,
        objective: Objective,
        *,
        sources: int,
        processes: Processes,
        should_stop: Callable[[], bool],
        waiting: Callable[[], bool] = lambda: False,
        collect: Callable[[], None] = lambda: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.feed = feed
        self.objective = objective
        self.sources = sources
        self.processes = processes
        self.should_stop = should_stop
        self.waiting = waiting
        self.collect = collect
        self.tell = tell
        self._fingerprint = 0

    def take(self, length: int, *, save_due: Callable[[], bool] = lambda: False) -> Intake:
        """The next update in rows of `length` tokens; the same decisions on every rank. The first one's `save_due` holds."""
        batches: list[Batch] | None = None
        problem, stop = "", self.should_stop()
        if not stop:
            try:
                batches = self.feed.next_step(length)
            except Interrupted:
                stop = True
            except (SourceError, TooManyBadRows, OSError) as error:
                problem = in_words(error)
        mine = batches or []
        counts = self._counts(mine)
        tokens = sum(batch.trained_tokens for batch in mine)
        flags = [bool(problem), stop, self.waiting(), save_due()]
        alike = [len(mine), self._fingerprint]
        sums = [tokens, *counts.values(), *self._source_rows(mine)]
        every = self.processes.exchange([*flags, *alike, *sums, *self.feed.ballot()])
        failing, stopping, telling, _ = (any(flag) for flag in list(zip(*every, strict=False))[: len(flags)])
        if telling:
            self.collect()
        if failing or stopping:
            if batches is not None:
                self.feed.rewind()  # its rows are not trained: the state is that before them, as on the other ranks
            return Intake(problem=self._first_problem(problem), stop=True)
        facts = [numbers[len(flags) :] for numbers in every]
        if any(fact[: len(alike)] != facts[0][: len(alike)] for fact in facts):
            return Intake(problem=_DISAGREE, sound=False)
        total = [sum(column) for column in zip(*facts, strict=True)][len(alike) : len(alike) + len(sums)]
        try:
            self.feed.settle([int(max(column)) for column in zip(*facts, strict=True)][len(alike) + len(sums) :])
        except SourceError as error:  # the same on every rank, and the state is that before these rows
            return Intake(problem=in_words(error))
        if self.processes.world > 1:
            self._fingerprint = self.feed.fingerprint()
        self.tell()
        means = [max(value / self.processes.world, 1e-9) for value in total[1 : 1 + len(counts)]]
        return Intake(
            mine,
            counts=dict(zip(counts, means, strict=True)),
            tokens=int(total[0]),
            source_rows=[int(value) for value in total[1 + len(counts) :]],
            save_due=bool(every[0][len(flags) - 1]),
        )

    def _first_problem(self, problem: str) -> str:
        """What goes wrong, with the rank that it goes wrong on where that is not the first; '' where nothing does."""
        for rank, one in enumerate(self.processes.gather(problem)):
            if one:
                return f"rank {rank}: {one}" if rank else one
        return ""

    def _counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """What each term is divided by, over this rank's micro-batches."""
        counts: dict[str, float] = {}
        for batch in batches:
            for name, count in self.objective.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
        return counts

    def _source_rows(self, batches: Sequence[Batch]) -> list[int]:
        """Rows of each source; what only fills up, with no document in it, is of none."""
        rows = Counter[int]()
        for batch in batches:
            sources = batch.source_B.tolist()
            rows.update(source for source, names in zip(sources, batch.documents_B, strict=True) if names)
        return [rows[source] for source in range(self.sources)]


_DISAGREE = (
    "the processes have read different data (is a source changed while it is read, or another on another machine?): nothing "
    "was saved since, the last checkpoint is whole"
)
