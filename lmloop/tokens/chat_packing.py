"""Packing conversations: whole ones into rows, so that rows are full and none is torn.

A row begins with the oldest conversation that waits. What fills it up best is then chosen among the next WINDOW that wait,
the older ones first where there is a choice; what is left is padding without weight. So a conversation waits for WINDOW
rows at most, and rows of the usual lengths are full to a token or two.

Where rows are shorter than a conversation (`sequence_schedule`), it is laid out as text is: as much of it as the row has
room for, and the rest at the beginning of the next row, as a segment of its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.source import SourceError
from lmloop.tokens.batch import RowBlock
from lmloop.tokens.conversations import ChatEncoder, Encoded, LeftOut
from lmloop.tokens.packed import PackedLane
from lmloop.tokens.rendering import GivenUpError

WINDOW = 64
"""Conversations among which is chosen what fills a row."""

_TASK_CONVERSATIONS = 32
"""Encoded together, up to so many or _TASK_CHARACTERS characters."""

_TASK_CHARACTERS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Place:
    """Between two documents: where the source reads on, the number of the next one, and what is known of the pass so far.

    Documents are numbered from the place on where reading began.
    """

    position: Position
    number: int
    progress: float
    good: int
    bad: int


@dataclass(slots=True, eq=False)
class _Chat:
    """A conversation that was read, and how much of it rows have.

    after: the place behind it. passed: the documents just before it that were left out, by why. planned, taken: pairs in
    rows that are planned or taken, and in those taken. whole: all of it is taken, perhaps in an earlier session.
    """

    id: str
    number: int
    after: _Place
    passed: Counter[str]
    encoded: Encoded | None = None
    planned: int = 0
    taken: int = 0
    whole: bool = False


_Piece = tuple[_Chat, int, int]
"""Pairs [start, end) of a conversation."""

_Item = tuple[int, Document, Position]
"""A document, its number and the position after it."""


class ChatLane(PackedLane[_Item, ChatEncoder]):
    """One source of conversations, packed into rows.

    What was taken is the set of the conversations in the rows, and how much of the one that is under way. The state says
    that: where the oldest one begins that is not taken whole, and which ones behind it are. Which comes next depends on
    nothing else, however far was read ahead.

    left_out: `skipped` as shorter than `min_text_length`, `too_long` since not even the first answer fits; and `cut`, those
    that were shortened at a turn. trained_bytes: UTF-8 length of the messages trained since this object was made.
    """

    REASONS = ("skipped", "too_long", "cut")
    trained_bytes = 0

    # ---- taking ----

    def available(self, length: int, count: int) -> int:
        """How many of the next `count` rows the current pass still has. Reads as far as it must, takes nothing."""
        if length != self._plan_length:
            self._unplan()
            self._plan_length = length
        while len(self._plan) < count:
            self._fill(lambda: len(self._waiting) > WINDOW)  # one goes first, and the others fill up
            if not self._waiting:
                break
            self._plan.append(self._next_row(length))
        return min(count, len(self._plan))

    def _take(self, length: int, rows: int) -> RowBlock:
        shape = (rows, length)
        tokens_BT = np.full(shape, self._tokenizer.pad_id, np.int64)
        targets_BT = np.full(shape, self._tokenizer.pad_id, np.int64)
        weights_BT = np.zeros(shape, np.float32)
        segments_BT = np.empty(shape, np.int32)
        documents: list[tuple[str, ...]] = []
        for row in range(rows):
            pieces = self._plan.popleft()
            at = 0
            for segment, (chat, start, end) in enumerate(pieces):
                encoded, beyond = _encoded(chat), at + end - start
                tokens_BT[row, at:beyond] = encoded.line_N[start:end]
                targets_BT[row, at:beyond] = encoded.line_N[start + 1 : end + 1]
                weights_BT[row, at:beyond] = encoded.weights_N[start:end]
                segments_BT[row, at:beyond] = segment
                at = beyond
                self._mark_taken(chat, start, end)
            segments_BT[row, at:] = len(pieces)
            documents.append(tuple(chat.id for chat, _, _ in pieces))
            self.pairs += at
        source_B = np.full(rows, self._index, np.int64)
        return RowBlock(tokens_BT, targets_BT, weights_BT, segments_BT, source_B, documents)

    def _mark_taken(self, chat: _Chat, start: int, end: int) -> None:
        encoded = _encoded(chat)
        if start == 0:
            self.left_out.update(chat.passed)
            self.left_out["cut"] += encoded.cut
            self.trained_bytes += encoded.trained_bytes
        chat.taken = end
        chat.whole = end == len(encoded)
        while self._read and self._read[0].whole:
            self._place = self._read.popleft().after
        self.progress = self._place.progress

    # ---- what goes into a row ----

    def _next_row(self, length: int) -> list[_Piece]:
        """The row after the last that was planned; something waits for it."""
        pieces: list[_Piece] = []
        room = self._put(self._waiting[0], pieces, length)
        if room and self._waiting and len(_encoded(self._waiting[0])) > length:
            room = self._put(self._waiting[0], pieces, room)  # it has to be torn anyway
        if room:
            window = [chat for _, chat in zip(range(WINDOW), self._waiting, strict=False)]
            for index in fill([len(_encoded(chat)) for chat in window], room):
                self._put(window[index], pieces, length)
        return pieces

    def _put(self, chat: _Chat, pieces: list[_Piece], room: int) -> int:
        """As much of a conversation as there is room for; the room left."""
        start = chat.planned
        chat.planned = min(len(_encoded(chat)), start + room)
        pieces.append((chat, start, chat.planned))
        if chat.planned == len(_encoded(chat)):
            self._waiting.remove(chat)
        return room - (chat.planned - start)

    def _unplan(self) -> None:
        """Forget the rows that are planned."""
        self._plan.clear()
        for chat in self._read:
            chat.planned = chat.taken
        self._waiting = deque(chat for chat in self._read if not chat.whole)

    # ---- reading ----

    def _begin(self, place: Mapping[str, Any]) -> None:
        super()._begin(place)
        progress, good, bad = place.get("progress_before", 0.0), place.get("good", 0), place.get("bad", 0)
        self._place = _Place(place.get("position", {}), 0, progress, good, bad)
        self._good, self._bad = good, bad
        self._ahead = set[int](place.get("ahead", ()))
        """Numbers of the documents that are taken and were not lined up since."""
        self._used: int = place.get("used", 0)
        """Pairs taken of the first conversation that is lined up."""
        self._read: deque[_Chat] = deque()
        self._waiting: deque[_Chat] = deque()
        self._plan: deque[list[_Piece]] = deque()
        self._plan_length = 0

    def _here(self) -> dict[str, Any]:
        place = self._place
        taken = [chat.number for chat in self._read if chat.whole] + sorted(self._ahead)
        first = next((chat for chat in self._read if not chat.whole), None)
        return {
            "position": place.position,
            "ahead": [number - place.number for number in taken],
            "used": first.taken if first else self._used,
            "good": place.good,
            "bad": place.bad,
            "progress_before": place.progress,
        }

    def _items(self) -> Iterator[_Item]:
        for number, (document, after) in enumerate(self.source.read(self._place.position, self.epoch)):
            self._check()
            yield number, document, after

    def _limits(self) -> tuple[int, int]:
        return _TASK_CONVERSATIONS, _TASK_CHARACTERS

    def _characters(self, item: _Item) -> int:
        return len(item[1].text)

    def _is_wanted(self, item: _Item) -> bool:
        return item[0] not in self._ahead and len(item[1].text) >= self._min_text_length

    def _start(self, items: list[_Item]) -> Callable[[], None]:
        wanted = [document for number, document, _ in filter(self._is_wanted, items)]
        keys = [(self.name, document.id, 0) for document in wanted]
        collect = self._encoder.start(keys, [document.messages or () for document in wanted])

        def line_up() -> None:
            try:
                encoded = iter(collect())
            except GivenUpError as error:
                raise SourceError(f"source '{self.name}': {error}") from None
            for item in items:
                self._take_in(*item, next(encoded) if self._is_wanted(item) else None)

        return line_up

    def _take_in(self, number: int, document: Document, after: Position, made: Encoded | LeftOut | None) -> None:
        """Line up a document, or count it where it is left out. made: what became of it where it is wanted."""
        if isinstance(made, LeftOut) and made.reason:
            self._set_aside(document, made.reason)
            return
        taken = number in self._ahead
        self._ahead.discard(number)
        self._good += 1
        if not taken and not isinstance(made, Encoded):
            self._passed["skipped" if made is None else "too_long"] += 1
            return
        place = _Place(after, number + 1, document.progress, self._good, self._bad)
        passed, self._passed = self._passed, Counter()
        chat = _Chat(document.id, number, place, passed)
        self._read.append(chat)
        if isinstance(made, Encoded):
            chat.encoded = made
            chat.planned = chat.taken = min(self._used, len(made) - 1)
            self._used = 0
            self._waiting.append(chat)
        else:
            chat.whole = True  # in an earlier session, which counted what was left out before it

    def _set_aside(self, document: Document, reason: str) -> None:
        """A conversation that the template refuses is a bad row. TooManyBadRows."""
        self._bad += 1
        file, _, line = document.id.rpartition("#")
        where = (file, int(line)) if file and line.isdigit() else (document.id, 0)
        self._encoder.quarantine.bad(self.name, *where, reason, document.text)
        self._encoder.quarantine.check(self.name, self._good, self._bad)


def _encoded(chat: _Chat) -> Encoded:
    assert chat.encoded is not None, chat.id
    return chat.encoded


def fill(lengths: Sequence[int], room: int) -> list[int]:
    """Which of `lengths` together come closest to `room` without exceeding it: indices, ascending.

    The earlier ones where there is a choice. Subset sums by dynamic programming, a set of sums being the bits of a number.
    """
    within = (1 << room + 1) - 1
    sums = [1]
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & within)
    left = sums[-1].bit_length() - 1
    chosen: list[int] = []
    for index in range(len(lengths) - 1, -1, -1):
        if not sums[index] >> left & 1:
            chosen.append(index)
            left -= lengths[index]
    return chosen[::-1]
