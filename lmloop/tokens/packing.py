"""Packing: the documents of a source as one stream of (input, target) pairs, cut into rows of any length.

A document of n tokens is n + 1 pairs: its inputs are the start token and its tokens, its targets are its tokens and the end
token. A row of length L is the next L pairs of the stream, so each pair is trained once a pass, whatever the lengths of
rows, also when they change on the way. A document that does not fit goes on in the next row, where it is a segment of its
own. What the last row of a pass lacks is padding without weight, in a last segment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.source import Source
from lmloop.data.waiting import while_waiting
from lmloop.tokens.batch import Row, RowBlock
from lmloop.tokens.encoding import Encoder, Key
from lmloop.tokens.tokenizer import PIECE_CHARACTERS, Tokenizer

_TASK_PIECES = 256
"""Short documents are encoded together, up to so many or PIECE_CHARACTERS characters."""


@dataclass(slots=True)
class _Piece:
    """A stretch of a document: [start, end) in characters."""

    document: Document
    start: int
    end: int
    before: Position
    after: Position
    progress_before: float
    skipped: int
    """Documents left out just before this one."""
    inputs_N: np.ndarray
    targets_N: np.ndarray
    used: int = 0

    @property
    def is_last(self) -> bool:
        """The document ends with it."""
        return self.end == len(self.document.text)


_NOTHING = np.zeros(0, np.int32)
_Task = tuple[list[_Piece], Callable[[], list[np.ndarray]]]


class Lane:
    """One source, packed into rows.

    Documents are read and encoded ahead of what was taken, but the state, `epoch` and `progress` are a function of what
    was taken alone. The state is where the current document begins, where in it the current piece begins, and how many
    pairs of the piece are taken: small at any place, and exact.

    epoch: passes that are over. progress: share of the current pass that was taken, 0 where the source cannot tell.
    too_long: documents that are too long for a row; a text never is.
    """

    too_long = 0

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        index: int = 0,
        min_text_length: int = 0,
        encoder: Encoder | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`index` is what rows carry as their source; `check` is called between documents and may raise to leave."""
        self.source = source
        self.name = source.name
        self._tokenizer = tokenizer
        self._index = index
        self._min_text_length = min_text_length
        self._encoder = encoder or Encoder(tokenizer)
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
        if rows == 0:
            self._end_pass()
            return None
        pairs = min(rows * length, self._buffered)
        tokens_N = np.full(rows * length, self._tokenizer.pad_id, np.int64)
        targets_N = np.full(rows * length, self._tokenizer.pad_id, np.int64)
        document_N = np.empty(rows * length, np.int32)
        names: list[str] = []
        at = 0
        while at < pairs:
            piece = self._ready[0]
            if piece.start == 0 or not names:
                names.append(piece.document.id)
            end = min(at + len(piece.targets_N) - piece.used, pairs)
            beyond = piece.used + end - at
            tokens_N[at:end] = piece.inputs_N[piece.used : beyond]
            targets_N[at:end] = piece.targets_N[piece.used : beyond]
            document_N[at:end] = len(names) - 1
            self._mark_taken(piece, beyond)
            at = end
        self.pairs += pairs
        self._buffered -= pairs
        weights_N = np.zeros(rows * length, np.float32)
        weights_N[:pairs] = 1.0
        document_N[pairs:] = len(names)
        shape = (rows, length)
        document_BT = document_N.reshape(shape)
        first_B, last_B = document_BT[:, 0], document_N[np.minimum(np.arange(1, rows + 1) * length, pairs) - 1]
        return RowBlock(
            tokens_BT=tokens_N.reshape(shape),
            targets_BT=targets_N.reshape(shape),
            weights_BT=weights_N.reshape(shape),
            segments_BT=document_BT - first_B[:, None],
            source_B=np.full(rows, self._index, np.int64),
            documents_B=_names_of_rows(names, first_B.tolist(), last_B.tolist()),
        )

    def available(self, length: int, count: int) -> int:
        """How many of the next `count` rows the current pass still has. Reads as far as it must, takes nothing."""
        self._fill(length * count)
        return min(count, -(-self._buffered // length))

    def _mark_taken(self, piece: _Piece, beyond: int) -> None:
        """Pairs of the first piece in line are taken up to `beyond`."""
        if piece.used == 0 and piece.start == 0:
            self.skipped += piece.skipped
        if beyond < len(piece.targets_N):
            piece.used = beyond
            self._position, self._offset, self._used = piece.before, piece.start, beyond
            self._previous = int(piece.inputs_N[0])
        else:
            self._ready.popleft()
            self._position, self._offset = (piece.after, 0) if piece.is_last else (piece.before, piece.end)
            self._used, self._previous = 0, int(piece.targets_N[-1])
            if piece.is_last:
                self._progress_before = self.progress = piece.document.progress
                return
        self._progress_before = piece.progress_before
        if piece.document.progress:
            done = piece.start + (piece.end - piece.start) * beyond / len(piece.targets_N)
            step = piece.document.progress - piece.progress_before
            self.progress = piece.progress_before + step * done / max(len(piece.document.text), 1)

    def _end_pass(self) -> None:
        self.was_empty = not self.pairs
        self.total_pairs = self.pairs
        self.skipped += self._skipped_at_end
        self.epoch += 1
        self.progress = 0.0
        self.pairs = 0
        self._begin({}, 0, 0, self._tokenizer.start_id, 0.0)

    # ---- reading ----

    def _begin(self, position: Position, offset: int, used: int, previous: int, progress: float) -> None:
        """Read on from a place; what was read ahead is dropped."""
        self._position, self._offset, self._used = position, offset, used
        self._previous, self._progress_before = previous, progress
        self._reader: Iterator[_Piece] | None = None
        self._ready: deque[_Piece] = deque()
        self._tasks: deque[_Task | BaseException] = deque()
        self._last_token = previous
        self._buffered = 0
        self._all_read = False
        self._skipped_at_end = 0

    def _fill(self, pairs: int) -> None:
        try:
            while self._buffered < pairs:
                self._check()
                with while_waiting(self._check):
                    self._read_ahead()
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                if isinstance(task, BaseException):
                    raise task
                pieces, encoded = task
                for piece, ids in zip(pieces, encoded(), strict=True):
                    self._put(piece, ids)
        except BaseException:  # nothing was taken: a later call reads again from where this one began
            self._begin(self._position, self._offset, self._used, self._previous, self._progress_before)
            raise

    def _put(self, piece: _Piece, ids: np.ndarray) -> None:
        """Line up an encoded piece."""
        if piece.start == 0:
            self._last_token = self._tokenizer.start_id
        line = np.empty(len(ids) + 1 + piece.is_last, np.int32)
        line[0] = self._last_token
        line[1 : len(ids) + 1] = ids
        if piece.is_last:
            line[-1] = self._tokenizer.eos_id
        self._last_token = int(line[-1])
        piece.inputs_N, piece.targets_N = line[:-1], line[1:]
        if piece.used < len(piece.targets_N):  # all used: the document became shorter since the state was saved
            self._ready.append(piece)
            self._buffered += len(piece.targets_N) - piece.used

    def _read_ahead(self) -> None:
        """Keep as many tasks under way as there are threads, and one more."""
        if self._reader is None and not self._all_read:
            self._reader = self._pieces()
        while self._reader is not None and len(self._tasks) <= self._encoder.workers:
            pieces: list[_Piece] = []
            keys: list[Key] = []
            texts: list[str] = []
            characters = 0
            failure: BaseException | None = None
            try:
                while characters < PIECE_CHARACTERS and len(pieces) < _TASK_PIECES:
                    piece = next(self._reader)
                    pieces.append(piece)
                    text = piece.document.text
                    texts.append(text if piece.end - piece.start == len(text) else text[piece.start : piece.end])
                    keys.append((self.name, piece.document.id, piece.start))
                    characters += len(texts[-1])
            except StopIteration:
                self._reader, self._all_read = None, True
            except BaseException as error:  # it is raised where it stands in the stream: after what was read before it
                self._reader, failure = None, error
            if pieces:
                self._tasks.append((pieces, self._encoder.start(keys, texts)))
            if failure is not None:
                self._tasks.append(failure)

    def _pieces(self) -> Iterator[_Piece]:
        """The pieces of the rest of the pass, from the saved place on."""
        before, offset, used, progress = self._position, self._offset, self._used, self._progress_before
        skipped = 0
        for document, after in self.source.read(before, self.epoch):
            self._check()
            text = document.text
            if len(text) < self._min_text_length:
                skipped += 1
                continue
            if offset == 0 or offset < len(text):  # else: the document became shorter since the state was saved
                start = offset
                while True:
                    end = self._tokenizer.piece_end(text, start)
                    yield _Piece(document, start, end, before, after, progress, skipped, _NOTHING, _NOTHING, used)
                    start, used = end, 0
                    if end == len(text):
                        break
            before, offset, used, progress, skipped = after, 0, 0, document.progress, 0
        self._skipped_at_end = skipped

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the next row begins, JSON-able. Positions are the source's own objects: copy before changing them."""
        return {
            "position": self._position,
            "offset": self._offset,
            "used": self._used,
            "previous": self._previous,
            "progress_before": self._progress_before,
            "progress": self.progress,
            "epoch": self.epoch,
            "pairs": self.pairs,
            "total_pairs": self.total_pairs,
            "skipped": self.skipped,
            "was_empty": self.was_empty,
            "tokenizer": self._tokenizer.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; `{}` is the start. Under another tokenizer, from the start of the document."""
        self.epoch: int = state.get("epoch", 0)
        self.progress: float = state.get("progress", 0.0)
        self.pairs: int = state.get("pairs", 0)
        """Pairs taken in this pass."""
        self.total_pairs: int | None = state.get("total_pairs")
        """Pairs of the last whole pass."""
        self.skipped: int = state.get("skipped", 0)
        """Documents left out as too short, over all passes."""
        self.was_empty: bool = state.get("was_empty", False)
        """The last whole pass had no document."""
        offset, used, previous = state.get("offset", 0), state.get("used", 0), state.get("previous")
        if previous is None or state.get("tokenizer") != self._tokenizer.fingerprint:
            offset, used, previous = 0, 0, self._tokenizer.start_id
        self._begin(state.get("position", {}), offset, used, previous, state.get("progress_before", 0.0))


def _names_of_rows(names: list[str], first: list[int], last: list[int]) -> list[tuple[str, ...]]:
    """The documents of each row; a short row, of which there are many, costs no new tuple."""
    alone = [(name,) for name in names]
    return [alone[a] if a == b else tuple(names[a : b + 1]) for a, b in zip(first, last, strict=True)]
