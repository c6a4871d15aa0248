"""Packing: the documents of a source as one stream of (input, target) pairs, cut into rows of any length.

A document of n tokens is n + 1 pairs: its inputs are the start token and its tokens, its targets are its tokens and the end
token. A row of length L is the next L pairs of the stream, so each pair is trained once a pass, whatever the lengths of
rows, also when they change on the way. A document that does not fit goes on in the next row, where it is a segment of its
own. What the last row of a pass lacks is padding without weight, in a last segment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.source import Source
from lmloop.tokens.batch import RowBlock
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.packed import PackedLane
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
    def text(self) -> str:
        """The stretch."""
        text = self.document.text
        return text if self.end - self.start == len(text) else text[self.start : self.end]

    @property
    def is_last(self) -> bool:
        """The document ends with it."""
        return self.end == len(self.document.text)


_NOTHING = np.zeros(0, np.int32)


class Lane(PackedLane[_Piece, Encoder]):
    """One source of texts, packed into rows.

    The state is where the current document begins, where in it the current piece begins, and how many pairs of the piece
    are taken.
    """

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
        """As that of the base."""
        encoder = encoder or Encoder(tokenizer)
        super().__init__(source, tokenizer, encoder, index=index, min_text_length=min_text_length, check=check)

    # ---- taking ----

    def available(self, length: int, count: int) -> int:
        """How many of the next `count` rows the current pass still has. Reads as far as it must, takes nothing."""
        self._fill(lambda: self._buffered >= length * count)
        return min(count, -(-self._buffered // length))

    def _take(self, length: int, rows: int) -> RowBlock:
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

    def _mark_taken(self, piece: _Piece, beyond: int) -> None:
        """Pairs of the first piece in line are taken up to `beyond`."""
        if piece.used == 0 and piece.start == 0:
            self.left_out["skipped"] += piece.skipped
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

    # ---- reading ----

    def _begin(self, place: Mapping[str, Any]) -> None:
        super()._begin(place)
        self._position: Position = place.get("position", {})
        self._progress_before: float = place.get("progress_before", 0.0)
        inside = place if "previous" in place else {}  # else: of another tokenizer, or of conversations
        self._offset: int = inside.get("offset", 0)
        self._used: int = inside.get("used", 0)
        self._previous: int = inside.get("previous", self._tokenizer.start_id)
        self._last_token = self._previous
        self._ready: deque[_Piece] = deque()
        self._buffered = 0

    def _here(self) -> dict[str, Any]:
        return {
            "position": self._position,
            "offset": self._offset,
            "used": self._used,
            "previous": self._previous,
            "progress_before": self._progress_before,
        }

    def _items(self) -> Iterator[_Piece]:
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
        self._passed["skipped"] = skipped

    def _limits(self) -> tuple[int, int]:
        return _TASK_PIECES, PIECE_CHARACTERS

    def _characters(self, item: _Piece) -> int:
        return item.end - item.start

    def _start(self, items: list[_Piece]) -> Callable[[], None]:
        keys = [(self.name, piece.document.id, piece.start) for piece in items]
        encoded = self._encoder.start(keys, [piece.text for piece in items])

        def line_up() -> None:
            for piece, ids in zip(items, encoded(), strict=True):
                self._put(piece, ids)

        return line_up

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


def _names_of_rows(names: list[str], first: list[int], last: list[int]) -> list[tuple[str, ...]]:
    """The documents of each row; a short row, of which there are many, costs no new tuple."""
    alone = [(name,) for name in names]
    return [alone[a] if a == b else tuple(names[a : b + 1]) for a, b in zip(first, last, strict=True)]
