"""What packing texts and packing conversations have in common: reading and encoding ahead, and the counts of a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from lmloop.data.source import Source
from lmloop.data.waiting import while_waiting
from lmloop.tokens.batch import Row, RowBlock
from lmloop.tokens.encoding import Remembering
from lmloop.tokens.tokenizer import Tokenizer

Item = TypeVar("Item")
Coder = TypeVar("Coder", bound=Remembering[Any, Any])

_IN_A_DOCUMENT = ("offset", "used", "previous")
"""What a state says of the place in a document. It means nothing under another tokenizer."""


class PackedLane(ABC, Generic[Item, Coder]):
    """One source, packed into rows. Items are what is read of it, to be encoded by a coder.

    Documents are read and encoded ahead of what was taken, but the state, `epoch` and `progress` are a function of what
    was taken alone: small at any place, and exact.

    epoch: passes that are over. progress: share of the current pass that was taken, 0 where the source cannot tell. pairs:
    taken in this pass. total_pairs: those of the last whole pass. was_empty: it had no document. left_out: documents of all
    passes, by the reasons in REASONS.
    """

    REASONS: ClassVar[tuple[str, ...]] = ("skipped",)

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        encoder: Coder,
        *,
        index: int = 0,
        min_text_length: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`index` is what rows carry as their source; `check` is called between documents and may raise to leave."""
        self.source = source
        self.name = source.name
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._index = index
        self._min_text_length = min_text_length
        self._check = check
        self.load_state_dict({})

    # ---- taking ----

    def take(self, length: int) -> Row | None:
        """The next row; None when the pass is over, after which the next call starts the next pass."""
        block = self.take_rows(length, 1)
        return block.row(0) if block else None

    def take_rows(self, length: int, count: int) -> RowBlock | None:
        """The next `count` rows, fewer where the pass ends first; None, once, when the pass is over."""
        rows = self.available(length, count)
        if rows:
            return self._take(length, rows)
        self.was_empty = not self.pairs
        self.total_pairs = self.pairs
        self.left_out.update(self._passed)
        self.epoch += 1
        self.progress = 0.0
        self.pairs = 0
        self._begin({})
        return None

    @abstractmethod
    def available(self, length: int, count: int) -> int:
        """How many of the next `count` rows the current pass still has. Reads as far as it must, takes nothing."""

    @abstractmethod
    def _take(self, length: int, rows: int) -> RowBlock:
        """The next rows, so many of which are available."""

    @property
    def skipped(self) -> int:
        """Documents left out as too short, over all passes."""
        return self.left_out["skipped"]

    @property
    def too_long(self) -> int:
        """Conversations left out because not even the first answer fits, over all passes; a text is never too long."""
        return self.left_out["too_long"]

    # ---- reading ----

    def _begin(self, place: Mapping[str, Any]) -> None:
        """Read on from a place as `_here` says it, `{}` being the start; what was read ahead is dropped."""
        self._reader: Iterator[Item] | None = self._items()
        self._tasks: deque[Callable[[], None] | BaseException] = deque()
        self._passed: Counter[str] = Counter()
        """Left out since the last document that was lined up."""

    @abstractmethod
    def _here(self) -> dict[str, Any]:
        """The place behind what was taken, as a part of the state."""

    @abstractmethod
    def _items(self) -> Iterator[Item]:
        """The rest of the pass."""

    @abstractmethod
    def _characters(self, item: Item) -> int:
        """How long an item is."""

    @abstractmethod
    def _limits(self) -> tuple[int, int]:
        """Up to how many items, or characters, are encoded together."""

    @abstractmethod
    def _start(self, items: list[Item]) -> Callable[[], None]:
        """Begin to encode items; the result, when called, lines them up."""

    def _fill(self, is_enough: Callable[[], bool]) -> None:
        """Line up what comes next, as far as the pass goes."""
        try:
            while not is_enough():
                self._check()
                with while_waiting(self._check):
                    self._read_ahead()
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                if isinstance(task, BaseException):
                    raise task
                task()
        except BaseException:  # nothing was taken: a later call reads again from where this one began
            self._begin(self._here())
            raise

    def _read_ahead(self) -> None:
        """Keep as many tasks under way as there are threads, and one more."""
        most, most_characters = self._limits()
        while self._reader is not None and len(self._tasks) <= self._encoder.workers:
            items: list[Item] = []
            characters = 0
            failure: BaseException | None = None
            try:
                while len(items) < most and characters < most_characters:
                    items.append(next(self._reader))
                    characters += self._characters(items[-1])
            except StopIteration:
                self._reader = None
            except BaseException as error:  # it is raised where it stands in the stream: after what was read before it
                self._reader, failure = None, error
            if items:
                self._tasks.append(self._start(items))
            if failure is not None:
                self._tasks.append(failure)

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the next row begins, JSON-able. Positions are the source's own objects: copy before changing them."""
        return {
            **self._here(),
            "progress": self.progress,
            "epoch": self.epoch,
            "pairs": self.pairs,
            "total_pairs": self.total_pairs,
            **{why: self.left_out[why] for why in self.REASONS},
            "was_empty": self.was_empty,
            "tokenizer": self._tokenizer.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; `{}` is the start. Under another tokenizer, from the start of the document."""
        self.epoch: int = state.get("epoch", 0)
        self.progress: float = state.get("progress", 0.0)
        self.pairs: int = state.get("pairs", 0)
        self.total_pairs: int | None = state.get("total_pairs")
        self.left_out = Counter({why: state.get(why, 0) for why in self.REASONS})
        self.was_empty: bool = state.get("was_empty", False)
        if state.get("tokenizer") != self._tokenizer.fingerprint:
            state = {key: value for key, value in state.items() if key not in _IN_A_DOCUMENT}
        self._begin(state)
