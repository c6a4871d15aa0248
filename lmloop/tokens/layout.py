"""A template's own text, made ready: which of it are control tokens, and whose part each piece is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import AddedToken

from lmloop.tokens.skeleton import ChatTemplateError, Skeleton
from lmloop.tokens.tokenizer import Tokenizer

NOBODY = -1


class Part(NamedTuple):
    """A piece of a template's text: a control token's id, or text; and the message that it belongs to, or NOBODY.

    What belongs to an assistant's message is written by the model. `cut`: the prompt ends before this part.
    """

    text: str
    control: int | None
    owner: int
    cut: bool = False


@dataclass(frozen=True)
class Layout:
    """A skeleton made ready.

    parts: those of each of its texts. answers: which messages are the model's. ends: the control tokens that end them.
    """

    parts: tuple[tuple[Part, ...], ...]
    answers: frozenset[int]
    ends: frozenset[int]


class Controls:
    """The control tokens of a template: the tokenizer's special ones, and `structural` others.

    ids: text → id. tokens: id → how it is matched.
    """

    def __init__(self, tokenizer: Tokenizer, structural: Collection[str] = ()) -> None:
        added = tokenizer.backend.get_added_tokens_decoder()
        self.tokens: dict[int, AddedToken] = {
            index: token for index, token in added.items() if token.special or token.content in structural
        }
        self.ids = {token.content: index for index, token in self.tokens.items()}
        self.pattern = re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))))
        self._eos_id = tokenizer.eos_id

    def layout(self, found: Skeleton, roles: Sequence[str], *, prompted: bool = False) -> Layout:
        """The layout of a skeleton; `prompted`: it ends with the prompt for an answer.

        Raises:
            ChatTemplateError: the model would not learn where its answer ends.
        """
        answers = frozenset(index for index, role in enumerate(roles) if role == "assistant")
        parts: list[tuple[Part, ...]] = []
        ends: set[int] = set()
        for index, text in enumerate(found.texts):
            here: list[Part] = []
            at = 0
            if index - 1 in answers and not (prompted and index == len(roles)):
                at = self._closing(text)
                if at:
                    here = self._parts(text[:at], index - 1)
                elif index == len(roles):
                    here = [Part("", self._eos_id, index - 1)]
                else:
                    what = "the template ends an answer without a control token"
                    raise ChatTemplateError(f"{what}: the model would not learn to stop")
                ends |= {part.control for part in here if part.control is not None}
            given = len(text)
            if index in answers and not self.pattern.search(text, max(found.given[index], at)):
                given = max(found.given[index], at)
            here += self._parts(text[at:given], NOBODY)
            if index in answers:
                first, *others = self._parts(text[given:], index) or [Part("", None, index)]
                here += [first._replace(cut=True), *others]
            parts.append(tuple(here))
        return Layout(tuple(parts), answers, frozenset(ends))

    def _closing(self, text: str) -> int:
        """Where an answer ends in the text after it: with the first control token, before which there may be white space."""
        found = self.pattern.search(text)
        return found.end() if found is not None and not text[: found.start()].strip() else 0

    def _parts(self, text: str, owner: int) -> list[Part]:
        parts, at = [], 0
        for found in self.pattern.finditer(text):
            if found.start() > at:
                parts.append(Part(text[at : found.start()], None, owner))
            parts.append(Part("", self.ids[found[0]], owner))
            at = found.end()
        return parts + ([Part(text[at:], None, owner)] if at < len(text) else [])


def structural(tokenizer: Tokenizer, found: Mapping[tuple[str, ...], Skeleton]) -> set[str]:
    """Added tokens that are no special ones, and yet mark where messages begin and end: a template writes them elsewhere
    than in what the model itself writes. (`<think>` is none: there it is as good as a word.)"""
    added = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if not token.special]
    given = [
        text[: probe.given[index]] if index < len(roles) and roles[index] == "assistant" else text
        for roles, probe in found.items()
        for index, text in enumerate(probe.texts)
    ]
    return {name for name in added if any(name in text for text in given)}
