"""Conversations as tokens, with what is trained in them.

The template's own text and what people said are told apart before anything is encoded. Control tokens are looked for in the
former only; everything else is encoded as text, in one run from control token to control token, as a tokenizer that reads
the whole conversation would do it. So the ids are those of transformers, except where somebody typed a control token.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lmloop.tokens.layout import NOBODY, Controls, Layout
from lmloop.tokens.skeleton import ChatTemplateError
from lmloop.tokens.tokenizer import Tokenizer

_CALL_CHARACTERS = 1 << 20
"""Encoded in one call: the library takes some hundred bytes for each token until the call is done."""


@dataclass(frozen=True)
class Masked:
    """A conversation as tokens.

    tokens_N: ids, int32. weights_N: 1 where a token is trained, as what follows the tokens before it, else 0; fp32.
    spans: for each message its tokens [start, end); of an assistant's message they are those that the model writes, with
        the token that ends its turn.
    """

    tokens_N: np.ndarray
    weights_N: np.ndarray
    spans: tuple[tuple[int, int], ...]


class _Control(NamedTuple):
    id: int
    owner: int


class _Run(NamedTuple):
    """Text between two control tokens, or a piece of it, and where in it whose part begins: (character, owner).

    `begins`: it is the first text of its conversation.
    """

    text: str
    marks: list[tuple[int, int]]
    begins: bool


class MaskedEncoder:
    """Fills layouts with messages and encodes them."""

    def __init__(self, tokenizer: Tokenizer, controls: Controls) -> None:
        described = json.loads(tokenizer.backend.to_str())
        self.controls = controls
        self._tokenizer = tokenizer
        self._never = frozenset(controls.tokens) - _unknown(described["model"])
        self._first, self._later = _backends(tokenizer.backend, described, controls)
        self._cuts = False

    def try_cut(self, layout: Layout) -> None:
        """Cut at the end of prompts from now on, if that leaves the ids of an ordinary answer as they are.

        The model then sees in training what it sees when it answers, even if an answer begins with white space that the
        tokenizer would merge with the prompt. Tokenizers that mark the beginning of a text (SentencePiece) do not allow it.
        """
        said = ["Hello there."] * (len(layout.parts) - 1)
        whole = self.encode([(layout, said)])[0]
        self._cuts = True
        parts = self.encode([(layout, said)])[0]
        if isinstance(whole, Masked) and isinstance(parts, Masked):
            self._cuts = whole.tokens_N.tolist() == parts.tokens_N.tolist()

    def encode(self, filled: Sequence[tuple[Layout, Sequence[str]]]) -> list[Masked | ChatTemplateError]:
        """Each conversation; `filled` gives its layout and what its messages say. Weights are those of the answers."""
        lines = [self._line(layout, said) for layout, said in filled]
        encoded = self._encoded([item for line in lines for item in line if isinstance(item, _Run)])
        return [self._masked(layout, len(said), line, encoded) for (layout, said), line in zip(filled, lines, strict=True)]

    def _line(self, layout: Layout, said: Sequence[str]) -> list[_Run | _Control]:
        """A conversation as what is encoded one after the other."""
        line = _Line(self._tokenizer, self.controls.tokens)
        for index, parts in enumerate(layout.parts):
            for part in parts:
                if part.cut and self._cuts:
                    line.end_run()
                if part.control is None:
                    line.say(part.text, part.owner)
                else:
                    line.control(part.control, part.owner)
            if index < len(said):
                line.say(said[index], index)
        line.end_run()
        return line.items

    def _encoded(self, runs: Sequence[_Run]) -> Iterator[tuple[list[int], list[int]]]:
        """For each run its ids, and where each of them ends in the text: nothing where there is one owner only."""
        for chunk in _chunks(runs):
            results: list[tuple[list[int], list[int]]] = [([], [])] * len(chunk)
            for begins in (False, True):
                for shared in (False, True):
                    places = [n for n, run in enumerate(chunk) if run.begins == begins and (len(run.marks) > 1) == shared]
                    if not places:
                        continue
                    backend = self._first if begins else self._later
                    encode = backend.encode_batch if shared else backend.encode_batch_fast  # which knows no offsets
                    encodings = encode([chunk[place].text for place in places], add_special_tokens=False)
                    for place, encoding in zip(places, encodings, strict=True):
                        results[place] = encoding.ids, [end for _, end in encoding.offsets] if shared else []
            yield from results

    def _masked(
        self,
        layout: Layout,
        messages: int,
        line: Sequence[_Run | _Control],
        encoded: Iterator[tuple[list[int], list[int]]],
    ) -> Masked | ChatTemplateError:
        ids: list[int] = []
        starts: list[tuple[int, int]] = []  # (token, owner from there on)
        typed: int | None = None
        for item in line:
            if isinstance(item, _Control):
                starts.append((len(ids), item.owner))
                ids.append(item.id)
                continue
            new, ends = next(encoded)
            if typed is None and not self._never.isdisjoint(new):
                typed = next(index for index in new if index in self._never)
            # A token that reaches over a border belongs to what begins there.
            starts += [(len(ids) + (bisect_right(ends, at) if at else 0), owner) for at, owner in item.marks]
            ids += new
        if typed is not None:
            name = self.controls.tokens[typed].content
            return ChatTemplateError(f"this tokenizer makes a control token of the text {name!r} that a message holds")
        weights_N = np.zeros(len(ids), np.float32)
        spans = [(len(ids), 0)] * messages
        for (start, owner), end in zip(starts, [*(start for start, _ in starts[1:]), len(ids)], strict=True):
            if owner != NOBODY and start < end:
                spans[owner] = min(spans[owner][0], start), max(spans[owner][1], end)
                if owner in layout.answers:
                    weights_N[start:end] = 1.0
        return Masked(np.array(ids, np.int32), weights_N, tuple((min(start, end), end) for start, end in spans))


class _Line:
    """Gathers what is said into runs."""

    def __init__(self, tokenizer: Tokenizer, tokens: dict[int, AddedToken]) -> None:
        self.items: list[_Run | _Control] = []
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._after: AddedToken | None = None
        self._begin()

    def _begin(self) -> None:
        self._texts: list[str] = []
        self._marks: list[tuple[int, int]] = []
        self._length = 0

    def say(self, text: str, owner: int) -> None:
        """More text of the present run."""
        if text:
            self._texts.append(text)
            self._marks.append((self._length, owner))
            self._length += len(text)

    def control(self, index: int, owner: int) -> None:
        """A control token, which ends the run."""
        token = self._tokens[index]
        self.end_run(token)
        self.items.append(_Control(index, owner))
        self._after = token

    def end_run(self, before: AddedToken | None = None) -> None:
        """Put the run in line, without the white space that the control tokens around it swallow."""
        text, marks, after = "".join(self._texts), self._marks, self._after
        self._begin()
        self._after = None
        if before is not None and before.lstrip:
            text = text.rstrip()
        if after is not None and after.rstrip:
            gone = len(text) - len(text.lstrip())
            text, marks = text[gone:], [(max(at - gone, 0), owner) for at, owner in marks]
        start = 0
        while start < len(text):
            end = self._tokenizer.piece_end(text, start)
            if start or end < len(text):
                owner = [owner for at, owner in marks if at <= start][-1]
                within = [(0, owner), *((at - start, owner) for at, owner in marks if start < at < end)]
                self.items.append(_Run(text[start:end], within, not self.items))
            else:
                self.items.append(_Run(text, marks, not self.items))
            start = end


def _chunks(runs: Sequence[_Run]) -> Iterator[list[_Run]]:
    chunk: list[_Run] = []
    characters = 0
    for run in runs:
        chunk.append(run)
        characters += len(run.text)
        if characters >= _CALL_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _unknown(model: dict[str, Any]) -> set[int]:
    """The token for what a tokenizer does not know, which often counts as a special one and yet stands for text."""
    index = model["vocab"].get(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
    return set() if index is None else {index}


def _backends(own: Backend, described: dict[str, Any], controls: Controls) -> tuple[Backend, Backend]:
    """The library's tokenizer for text at the beginning of a conversation, and for text further on.

    Both encode every control token of `controls` as text. They differ where the tokenizer puts a mark before the first
    text only (Metaspace's `first`), which must not come before each run.
    """
    changed = False
    for token in described["added_tokens"]:
        if token["content"] in controls.ids and not token["special"]:
            token["special"] = changed = True
    first = _read(described) if changed else own
    steps = described["pre_tokenizer"] or {}
    once = [step for step in steps.get("pretokenizers", [steps]) if step.get("prepend_scheme") == "first"]
    for step in once:
        step["prepend_scheme"] = "never"
    return first, _read(described) if once else first


def _read(described: dict[str, Any]) -> Backend:
    backend = Backend.from_str(json.dumps(described, ensure_ascii=False))
    backend.encode_special_tokens = True
    return backend
