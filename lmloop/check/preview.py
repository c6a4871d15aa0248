"""What is trained, to look at: stretches of real rows, token by token, with their weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from lmloop.generation.text import TextStream
from lmloop.tokens.batch import Row, RowBlock
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.progress import visible

HEAD_TOKENS, TAIL_TOKENS = 120, 40
"""Of a longer stretch only the beginning and the end are shown."""


@dataclass(frozen=True)
class Piece:
    """A token's text; that of several tokens where only together they are a character.

    `control` names a control token, whose text is its name.
    """

    text: str
    trained: bool
    control: bool = False


@dataclass(frozen=True)
class Sample:
    """One document's stretch of one row, or of a longer one its ends."""

    document: str
    pieces: tuple[Piece, ...]
    tokens: int
    """Predicted tokens of the stretch."""
    trained_tokens: int
    left_out: int
    """Tokens that are not shown, after the first HEAD_TOKENS."""
    begins: bool
    """The document begins with it."""
    ends: bool


class Sampler:
    """Picks samples from the rows of a source: the first document, and some from further on.

    Those come from the rows whose number is a power of two, of which the latest stay: at the end of the pass they are
    spread over the source, whatever its size.
    """

    def __init__(self, tokenizer: Tokenizer, samples: int, *, whole: bool = False) -> None:
        """`whole`: documents are never torn, as conversations are not."""
        self._whole = whole
        self._tokenizer = tokenizer
        self._first: list[Row] = []
        self._later: deque[Row] = deque(maxlen=max(samples - 1, 0))
        self._wanted = samples
        self._seen = 0

    def take(self, block: RowBlock) -> None:
        """The next rows of the source."""
        if self._wanted == 0:
            return
        if self._seen == 0:
            self._first.append(block.row(0))
        power = 1 << max(self._seen - 1, 0).bit_length()
        while power < self._seen + len(block):
            self._later.append(block.row(power - self._seen))
            power *= 2
        self._seen += len(block)

    def samples(self) -> list[Sample]:
        """What was picked."""
        return [sample_of(row, self._tokenizer, first=True, whole=self._whole) for row in self._first] + [
            sample_of(row, self._tokenizer, first=False, whole=self._whole) for row in self._later
        ]


def sample_of(row: Row, tokenizer: Tokenizer, *, first: bool, whole: bool = False) -> Sample:
    """A document of a row: the first, or the first that begins and ends in it, if there is one, as `whole` ones do."""
    candidates = [_stretch(row, segment, tokenizer) for segment in range(len(row.documents))]
    untorn = [c for c in candidates if c[1] and c[2]]
    at, begins, ends = candidates[0] if first or not untorn else untorn[0]
    begins, ends = begins or whole, ends or whole
    start, stop = at.start, at.stop
    inputs, targets = row.tokens_T[start:stop].tolist(), row.targets_T[start:stop].tolist()
    trained = [False, *(row.weights_T[start:stop] > 0).tolist()]
    line = [inputs[0], *targets]
    left_out = len(line) - HEAD_TOKENS - TAIL_TOKENS
    if left_out <= TAIL_TOKENS:
        left_out = 0
        pieces = _pieces(line, trained, tokenizer)
    else:
        head, tail = slice(0, HEAD_TOKENS), slice(HEAD_TOKENS + left_out, None)
        pieces = [*_pieces(line[head], trained[head], tokenizer), Piece("", False)]
        pieces += _pieces(line[tail], trained[tail], tokenizer)
    document = row.documents[int(row.segments_T[start])]
    return Sample(document, tuple(pieces), len(targets), sum(trained), left_out, begins, ends)


def _stretch(row: Row, segment: int, tokenizer: Tokenizer) -> tuple[slice, bool, bool]:
    """Where a document is in a row, and whether it begins and ends there."""
    places = np.flatnonzero(row.segments_T == segment)
    begins = segment > 0 or int(row.tokens_T[places[0]]) == tokenizer.start_id
    ends = segment < len(row.documents) - 1 or int(row.targets_T[places[-1]]) == tokenizer.eos_id
    return slice(int(places[0]), int(places[-1]) + 1), begins, ends


def _pieces(line: Iterable[int], trained: Iterable[bool], tokenizer: Tokenizer) -> list[Piece]:
    """Tokens as text, none of it half a character."""
    control = tokenizer.control_tokens
    stream = TextStream(tokenizer)
    pieces: list[Piece] = []
    for token, is_trained in zip(line, trained, strict=True):
        if token in control:
            pieces.append(Piece(control[token], is_trained, control=True))
            stream = TextStream(tokenizer)
        elif text := stream.feed(token):
            pieces.append(Piece(text, is_trained))
    return pieces


# ---- how it is shown ----

_TRAINED = ("black on green", "black on bright_green")
_UNTRAINED = ("dim", "dim underline")
_CONTROL = "bold white on magenta"
_GAP = " … "


def in_colour(sample: Sample) -> Text:
    """With trained tokens on green in two shades, one for every other token; what is not trained is dim."""
    text = Text()
    shade = 0
    for piece in sample.pieces:
        if not piece.text:
            text.append(f" … {sample.left_out:,} tokens{_GAP}", "italic")
            continue
        styles = _TRAINED if piece.trained else _UNTRAINED
        style = (_CONTROL if piece.trained else f"{_CONTROL} dim") if piece.control else styles[shade % 2]
        text.append(_shown(piece), style)
        shade += 1
    return text


def in_marks(sample: Sample) -> Text:
    """For where there is no colour: « » around what is trained, · between tokens, ⟦ ⟧ around control tokens."""
    parts: list[str] = []
    inside = False
    for piece in sample.pieces:
        if piece.text and piece.trained != inside:
            parts.append("«" if piece.trained else "»")
            inside = piece.trained
        elif parts and piece.text and not parts[-1].endswith(("\n", _GAP)):
            parts.append("·")
        parts.append(_shown(piece) if piece.text else f" … {sample.left_out:,} tokens{_GAP}")
    return Text("".join(parts) + ("»" if inside else ""))


def _shown(piece: Piece) -> str:
    if piece.control:
        return f"⟦{piece.text}⟧"
    return visible(piece.text).replace("\t", "⇥   ").replace("\n", "↵\n")
