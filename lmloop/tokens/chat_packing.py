"""Packing conversations: whole ones into rows, so that rows are full and none is torn.

A row begins with the oldest conversation that waits. What fills it up best is then chosen among the next WINDOW that wait,
the older ones first where there is a choice; what is left is padding without weight. So a conversation waits for WINDOW
rows at most, and rows of the usual lengths are full to a token or two.

Where rows are shorter than a conversation (`sequence_schedule`), it is laid out as text is: as much of it as the row has
room for, and the rest at the beginning of the next row, as a segment of its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.source import Source, SourceError
from lmloop.data.waiting import while_waiting
from lmloop.tokens.batch import Row, RowBlock
from lmloop.tokens.conversations import ChatEncoder, Encoded, LeftOut
from lmloop.tokens.rendering import GivenUpError
from lmloop.tokens.tokenizer import Tokenizer

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

_Task = tuple[list[tuple[Document, Position]], Callable[[], list[Encoded | LeftOut]]]


class ChatLane:
    """One source of conversations, packed into rows. It is used as `Lane` is.

    What was taken is the set of the conversations in the rows, and how much of the one that is under way. The state says
    that: where the oldest one begins that is not taken whole, and which ones behind it are. Which comes next depends on
    nothing else, however far was read ahead.

    left_out: of all passes, by why: `skipped` as shorter than `min_text_length`, `too_long` since not even the first answer
    fits; and `cut`, those that were shortened at a turn. trained_bytes: UTF-8 length of the messages trained since this
    object was made.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        chats: ChatEncoder,
        *,
        index: int = 0,
        min_text_length: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`index` is what rows carry as their source; `check` is called between documents and may raise to leave."""
        self.source = source
        self.name = source.name
        self._tokenizer = tokenizer
        self._chats = chats
        self._index = index
        self._min_text_length = min_text_length
        self._check = check
        self.trained_bytes = 0
        self.load_state_dict({})

    # ---- taking ----

    def take(self, length: int) -> Row | None:
        """The next row; None when the pass is over, after which the next call starts the next pass."""
        block = self.take_rows(length, 1)
        return block.row(0) if block else None

    def take_rows(self, length: int, count: int) -> RowBlock | None:
        """The next `count` rows, fewer where the pass ends first; None, once, when the pass is over."""
        rows = self.available(length, count)
        if rows == 0:
            self._end_pass()
            return None
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

    def available(self, length: int, count: int) -> int:
        """How many of the next `count` rows the current pass still has. Reads as far as it must, takes nothing."""
        if length != self._plan_length:
            self._unplan()
            self._plan_length = length
        while len(self._plan) < count and self._fill():
            self._plan.append(self._next_row(length))
        return min(count, len(self._plan))

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

    def _end_pass(self) -> None:
        self.was_empty = not self.pairs
        self.total_pairs = self.pairs
        self.left_out.update(self._passed)
        self.epoch += 1
        self.progress = 0.0
        self.pairs = 0
        self._begin(_Place({}, 0, 0.0, 0, 0), [], 0)

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

    def _begin(self, place: _Place, ahead: Sequence[int], used: int) -> None:
        """Read on from a place; what was read ahead is dropped.

        ahead: numbers of the documents behind it that are taken already. used: pairs of the first one that are.
        """
        self._place = place
        self._ahead = {place.number + offset for offset in ahead}
        self._used = used
        self._next_number = place.number
        self._good, self._bad = place.good, place.bad
        self._reader: Iterator[tuple[Document, Position]] | None = None
        self._tasks: deque[_Task | BaseException] = deque()
        self._passed: Counter[str] = Counter()
        self._read: deque[_Chat] = deque()
        self._waiting: deque[_Chat] = deque()
        self._plan: deque[list[_Piece]] = deque()
        self._plan_length = 0
        self._all_read = False

    def _fill(self) -> bool:
        """Have a whole window wait, as far as the pass goes. False: nothing waits."""
        try:
            while len(self._waiting) <= WINDOW:  # one goes first, and the others fill up
                self._check()
                with while_waiting(self._check):
                    self._read_ahead()
                if not self._tasks:
                    break
                task = self._tasks.popleft()
                if isinstance(task, BaseException):
                    raise task
                documents, collect = task
                try:
                    encoded = iter(collect())
                except GivenUpError as error:
                    raise SourceError(f"source '{self.name}': {error}") from None
                for document, after in documents:
                    self._take_in(document, after, encoded)
        except BaseException:  # nothing was taken: a later call reads again from where this one began
            state = self._state()
            self._begin(self._place, state["ahead"], state["used"])
            raise
        return bool(self._waiting)

    def _take_in(self, document: Document, after: Position, encoded: Iterator[Encoded | LeftOut]) -> None:
        """Line up a document, or count it where it is left out."""
        number = self._next_number
        self._next_number += 1
        taken = number in self._ahead
        made = None if taken or self._is_short(document) else next(encoded)
        if isinstance(made, LeftOut) and made.reason:
            self._set_aside(document, made.reason)
            return
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
        self._chats.quarantine.bad(self.name, *where, reason, document.text)
        self._chats.quarantine.check(self.name, self._good, self._bad)

    def _is_short(self, document: Document) -> bool:
        return len(document.text) < self._min_text_length

    def _read_ahead(self) -> None:
        """Keep as many tasks under way as there are threads, and one more."""
        if self._reader is None and not self._all_read:
            self._reader = self.source.read(self._place.position, self.epoch)
            self._to_read = self._place.number
        while self._reader is not None and len(self._tasks) <= self._chats.workers:
            documents: list[tuple[Document, Position]] = []
            failure: BaseException | None = None
            wanted: list[Document] = []
            characters = 0
            try:
                while len(documents) < _TASK_CONVERSATIONS and characters < _TASK_CHARACTERS:
                    self._check()
                    document, after = next(self._reader)
                    documents.append((document, after))
                    characters += len(document.text)
                    if self._to_read not in self._ahead and not self._is_short(document):
                        wanted.append(document)
                    self._to_read += 1
            except StopIteration:
                self._reader, self._all_read = None, True
            except BaseException as error:  # it is raised where it stands in the stream: after what was read before it
                self._reader, failure = None, error
            if documents:
                keys = [(self.name, document.id, 0) for document in wanted]
                self._tasks.append((documents, self._chats.start(keys, [document.messages or () for document in wanted])))
            if failure is not None:
                self._tasks.append(failure)

    # ---- state ----

    def _state(self) -> dict[str, Any]:
        """What is taken, from the present place on."""
        known = [chat.number - self._place.number for chat in self._read if chat.whole]
        unread = [number - self._place.number for number in self._ahead if number >= self._next_number]
        first = next((chat for chat in self._read if not chat.whole), None)
        return {"ahead": known + sorted(unread), "used": first.taken if first else self._used}

    def state_dict(self) -> dict[str, Any]:
        """Where the next row begins, JSON-able. Positions are the source's own objects: copy before changing them."""
        return {
            "position": self._place.position,
            **self._state(),
            "good": self._place.good,
            "bad": self._place.bad,
            "progress_before": self._place.progress,
            "progress": self.progress,
            "epoch": self.epoch,
            "pairs": self.pairs,
            "total_pairs": self.total_pairs,
            **{why: self.left_out[why] for why in ("skipped", "too_long", "cut")},
            "was_empty": self.was_empty,
            "tokenizer": self._tokenizer.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; `{}` is the start. Under another tokenizer, from the start of the conversation."""
        self.epoch: int = state.get("epoch", 0)
        self.progress: float = state.get("progress", 0.0)
        self.pairs: int = state.get("pairs", 0)
        """Pairs taken in this pass."""
        self.total_pairs: int | None = state.get("total_pairs")
        """Pairs of the last whole pass."""
        self.left_out = Counter({why: state.get(why, 0) for why in ("skipped", "too_long", "cut")})
        self.was_empty: bool = state.get("was_empty", False)
        """The last whole pass had no conversation."""
        same = state.get("tokenizer") == self._tokenizer.fingerprint
        place = _Place(
            state.get("position", {}), 0, state.get("progress_before", 0.0), state.get("good", 0), state.get("bad", 0)
        )
        self._begin(place, state.get("ahead", ()), state.get("used", 0) if same else 0)

    @property
    def skipped(self) -> int:
        """Conversations left out as too short, over all passes."""
        return self.left_out["skipped"]

    @property
    def too_long(self) -> int:
        """Conversations left out because not even the first answer fits, over all passes."""
        return self.left_out["too_long"]


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
