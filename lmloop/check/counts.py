"""Counting one part of a source: its documents as they are read, and what of them is trained, row by row.

What is trained is never worked out here: the rows come from the same lane that training takes them from, and their weights
say it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmloop.data.document import Document, Position
from lmloop.data.source import Source, one_line
from lmloop.tokens.batch import RowBlock
from lmloop.tokens.conversations import ChatEncoder
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.lanes import lane_of

CHARACTERS_AT_MOST = 1_000_000_000
"""Of a part of a source as much is read when no number of documents was asked for."""

_CONTROL = re.compile(r"<\|[A-Za-z][\w .-]{0,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
_MAY_HOLD_CONTROL = ("<|", "<s>", "</s>", "INST]", "_of_turn>")
_TWICE_DECODED = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac.|\u00ef\u00bb\u00bf")
_KINDS_OF_CONTROL = 20
_TOKENS_AT_A_TIME = 1 << 16


@dataclass
class TextSigns:
    """What in the text may be a sign that it is not what it should be."""

    replacement_characters: int = 0
    """U+FFFD: what programs write for bytes they could not read."""
    twice_decoded: int = 0
    """What UTF-8 looks like that was read as Latin-1 or Windows-1252: `Ã©` for `é`, `â€™` for `’`."""
    control_strings: Counter[str] = field(default_factory=Counter)
    """Names of control tokens that stand in the text. They are text, and become nothing else."""

    def take(self, text: str) -> None:
        """Look through a text."""
        if any(mark in text for mark in _MAY_HOLD_CONTROL):
            for name, count in Counter(_CONTROL.findall(text)).items():
                if name in self.control_strings or len(self.control_strings) < _KINDS_OF_CONTROL:
                    self.control_strings[name] += count
        if not text.isascii():
            self.replacement_characters += text.count("\ufffd")
            self.twice_decoded += len(_TWICE_DECODED.findall(text))


@dataclass
class PartCounts:
    """What was counted of one part (train, validation or test) of one source.

    A document is one that takes part in training or evaluation; those left out as too short are counted apart.
    """

    source: str
    part: str
    documents: int = 0
    characters: int = 0
    too_short: int = 0
    too_long: int = 0
    """Conversations of which not even the first answer fits into a row: they are left out."""
    cut_at_a_turn: int = 0
    """Conversations whose last turns do not fit, and are left out."""
    tokens: int = 0
    """Positions of the rows without padding: each document's tokens and its end."""
    trained_tokens: int = 0
    """Of these, the ones with a weight: what budgets count."""
    rows: int = 0
    rows_without_training: int = 0
    documents_without_training: int = 0
    longer_than_context: int = 0
    cut: int = 0
    """Documents that go on in another row: the longer ones, and those at the end of a row."""
    longest_tokens: int = 0
    median_tokens: int = 0
    signs: TextSigns = field(default_factory=TextSigns)
    complete: bool = False
    """All of the part was read."""
    progress: float = 0.0
    """Share of the part that was read, 0 where the source cannot tell."""
    failure: str = ""
    """Why reading ended before its time."""


class Watched:
    """A source that shows each document to `see` as it is read, and ends after so many, or so many characters."""

    def __init__(
        self, source: Source, see: Callable[[Document], None], documents: int | None, characters: int | None
    ) -> None:
        self.name = source.name
        self.ended = False
        """It was read to its end."""
        self._source = source
        self._see = see
        self._documents = documents
        self._characters = characters

    def parents(self) -> Sequence[str] | None:
        """As those of the source."""
        return self._source.parents()

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass, cut short."""
        characters = 0
        for documents, (document, after) in enumerate(self._source.read(position, epoch)):
            if documents == self._documents or (self._characters is not None and characters >= self._characters):
                return
            self._see(document)
            yield document, after
            characters += len(document.text)
        self.ended = True


class RowCounter:
    """Adds up row blocks of one part, in the order in which a lane gives them."""

    def __init__(self, counts: PartCounts, seq_length: int) -> None:
        self._counts = counts
        self._seq_length = seq_length
        self._lengths: list[np.ndarray] = []
        self._open: str | None = None  # the document that the last row ended with, and what was counted of it
        self._open_tokens = self._open_trained = 0
        self._open_is_cut = False

    def take(self, block: RowBlock) -> None:
        """The next rows, each with the documents that it holds a part of."""
        rows = len(block)
        names_B = np.array([len(names) for names in block.documents_B], np.int64)
        continues_B = [self._open == block.documents_B[0][0]]
        continues_B += [block.documents_B[row - 1][-1] == block.documents_B[row][0] for row in range(1, rows)]
        continues = np.array(continues_B)
        last_B = np.cumsum(names_B - continues)  # number of each row's last document, the open one being 0
        first_B = last_B - names_B + 1
        here_BT = block.segments_BT < names_B[:, None]  # without padding, which is a segment of its own
        document_BT = block.segments_BT + first_B[:, None]
        count = int(last_B[-1]) + 1
        trained_BT = block.weights_BT > 0
        tokens_D = np.bincount(document_BT[here_BT], minlength=count)
        trained_D = np.bincount(document_BT[here_BT & trained_BT], minlength=count)
        cut_D = np.zeros(count, bool)
        cut_D[first_B[continues]] = True
        tokens_D[0] += self._open_tokens
        trained_D[0] += self._open_trained
        cut_D[0] |= self._open_is_cut
        self._end(tokens_D[:-1], trained_D[:-1], cut_D[:-1])
        self._open, self._open_is_cut = block.documents_B[-1][-1], bool(cut_D[-1])
        self._open_tokens, self._open_trained = int(tokens_D[-1]), int(trained_D[-1])
        self._counts.rows += rows
        self._counts.rows_without_training += int((~trained_BT.any(axis=1)).sum())

    def _end(self, tokens_D: np.ndarray, trained_D: np.ndarray, cut_D: np.ndarray) -> None:
        """Documents of which no more comes. One without tokens is the place of the open one where there was none."""
        counts = self._counts
        counts.tokens += int(tokens_D.sum())
        counts.trained_tokens += int(trained_D.sum())
        counts.longer_than_context += int((tokens_D > self._seq_length).sum())
        counts.cut += int(cut_D.sum())
        counts.documents += int((tokens_D > 0).sum())
        counts.documents_without_training += int(((tokens_D > 0) & (trained_D == 0)).sum())
        self._lengths.append(tokens_D[tokens_D > 0].astype(np.int32))

    def close(self) -> None:
        """The part is over."""
        self._end(np.array([self._open_tokens]), np.array([self._open_trained]), np.array([self._open_is_cut]))
        lengths_D = np.concatenate(self._lengths)
        if len(lengths_D):
            self._counts.longest_tokens = int(lengths_D.max())
            self._counts.median_tokens = int(np.median(lengths_D))


def count_part(
    counts: PartCounts,
    source: Source,
    encoder: Encoder,
    chats: ChatEncoder | None = None,
    *,
    seq_length: int,
    min_text_length: int,
    limit: int | None,
    see: Callable[[Document], None],
    show: Callable[[RowBlock], None],
) -> None:
    """Read a part once, by `chats` where it holds conversations, and count it into `counts`, which holds what was counted
    also when this is interrupted.

    `limit`: documents; None is all of them, up to CHARACTERS_AT_MOST. `see` gets each document that takes part, `show` the
    rows. A source that breaks off is on record as `counts.failure`.
    """

    def look(document: Document) -> None:
        counts.progress = document.progress
        if len(document.text) >= min_text_length:
            counts.characters += len(document.text)
            counts.signs.take(document.text)
            see(document)

    watched = Watched(source, look, limit, CHARACTERS_AT_MOST if limit is None else None)
    lane = lane_of(watched, encoder, chats, min_text_length=min_text_length)
    counter = RowCounter(counts, seq_length)
    try:
        while (block := lane.take_rows(seq_length, max(_TOKENS_AT_A_TIME // seq_length, 1))) is not None:
            counter.take(block)
            show(block)
        counts.complete = watched.ended
    except (OSError, ValueError) as error:
        counts.failure = one_line(error)
    finally:
        counter.close()
        counts.too_short, counts.too_long = lane.skipped, lane.too_long
        counts.cut_at_a_turn = lane.left_out["cut"]
