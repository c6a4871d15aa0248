"""Chat templates: what a conversation looks like to a model, and what of it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lmloop.data.document import Message
from lmloop.data.records import encodable
from lmloop.tokens.chat_templates import TEMPLATES
from lmloop.tokens.layout import Controls, Layout, structural
from lmloop.tokens.masked import Masked, MaskedEncoder
from lmloop.tokens.rendering import Trusted, Untrusted
from lmloop.tokens.skeleton import ChatTemplateError, Skeleton, align, search, skeleton
from lmloop.tokens.tokenizer import Tokenizer

MODEL = "model"
"""The name of the template that comes with a pretrained tokenizer."""

MOST_CHARACTERS = 1 << 22
"""A longer conversation, of a million tokens, is no training example; and some tokenizers read a text only as a whole."""

Trained = Literal["assistant", "all"]
"""What has a weight: what the model is to write, with the token that ends it; or every token."""

_MOST_KEPT = 200_000
"""Messages of all sequences of roles that are kept; then the keeping begins anew."""

_PROBES = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "tool", "assistant"),
)
"""Sequences of roles that show how a template is built. Only the first must be accepted by all."""

_Roles = tuple[str, ...]


def chat_template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template called `name`: one of TEMPLATES, or MODEL for the tokenizer's own.

    Raises:
        ValueError: there is none of this name, it does not suit the tokenizer, or it is no template that can be trained.
    """
    try:
        if name == MODEL:
            if tokenizer.chat_template is None:
                raise ValueError(f"the tokenizer has no template of its own: choose one of {', '.join(TEMPLATES)}")
            return _own(tokenizer.chat_template, tokenizer)
        if name not in TEMPLATES:
            raise ValueError(f"there is none of this name: choose one of {', '.join(TEMPLATES)} or {MODEL}")
        known = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
        for own in TEMPLATES[name]:
            if known >= set(own.needs):
                return _own(own.source, tokenizer)
        missing = [token for token in TEMPLATES[name][0].needs if token not in known]
        raise ValueError(f"the tokenizer has no control token {missing[0]}: choose 'plain' or 'alpaca', which need none")
    except ValueError as error:
        raise ValueError(f"chat template '{name}': {error}") from None


def _own(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of this source, rendered here if it is one of ours, which tokenizers of our runs carry along."""
    known = {own.source: own for forms in TEMPLATES.values() for own in forms}.get(source)
    render = Untrusted(source, tokenizer.named_tokens) if known is None else Trusted(source, tokenizer.named_tokens)
    return ChatTemplate(source, render, tokenizer, strips=known is not None and known.strips)


class ChatTemplate:
    """A template with a tokenizer; `chat_template` makes one. Calls may come from several threads.

    source: the Jinja text. stop_ids: the control tokens that end an answer.
    """

    def __init__(self, source: str, render: Trusted | Untrusted, tokenizer: Tokenizer, *, strips: bool = False) -> None:
        """`strips`: whether one of our own templates strips messages. ChatTemplateError when it cannot be trained."""
        self.source = source
        self._render = render
        self._strips = strips
        self._kept: dict[tuple[_Roles, bool], tuple[Skeleton, Layout] | str] = {}
        self._kept_messages = 0
        probes: dict[_Roles, Skeleton] = {}
        for roles in _PROBES:
            try:
                probes[roles] = skeleton(render, roles)
            except ChatTemplateError:
                if roles == _PROBES[0]:
                    raise
        self._encoder = MaskedEncoder(tokenizer, Controls(tokenizer, structural(tokenizer, probes)))
        _, usual = self._frame(_PROBES[0], False)
        self._encoder.try_cut(usual)
        self.stop_ids = usual.ends

    def encode(
        self, conversations: Sequence[Sequence[Message]], trained: Trained = "assistant"
    ) -> list[Masked | ChatTemplateError]:
        """Each conversation as tokens; a ChatTemplateError in the place of one that the template does not fit.

        Raises:
            GivenUpError: the model's template breaks its limits of time or memory several times in a row.
        """
        results = self._encode(conversations, prompted=False)
        for result in results:
            if trained == "all" and isinstance(result, Masked):
                result.weights_N.fill(1.0)
        return results

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """The tokens that ask the model for the next message, int32 [n]. ChatTemplateError."""
        (result,) = self._encode([messages], prompted=True)
        if isinstance(result, ChatTemplateError):
            raise result
        return result.tokens_N

    def close(self) -> None:
        """End the process that renders a model's template."""
        self._render.close()

    def _encode(self, conversations: Sequence[Sequence[Message]], *, prompted: bool) -> list[Masked | ChatTemplateError]:
        filled: dict[int, tuple[Layout, list[str]]] = {}
        results: dict[int, Masked | ChatTemplateError] = {}
        for index, messages in enumerate(conversations):
            try:
                filled[index] = self._frame(_roles(messages), prompted)[1], self._said(messages)
            except ChatTemplateError as error:
                results[index] = error.with_traceback(None)  # which would hold on to all there is here
        if isinstance(self._render, Untrusted):
            roles = {index: _roles(conversations[index]) for index in filled}
            jobs = [(list(zip(roles[index], said, strict=True)), prompted) for index, (_, said) in filled.items()]
            for index, rendered in zip(roles, self._render.each(jobs), strict=True):
                try:
                    filled[index] = self._found(roles[index], prompted, filled[index][1], *rendered)
                except ChatTemplateError as error:
                    results[index] = error.with_traceback(None)
                    del filled[index]
        results |= zip(filled, self._encoder.encode(list(filled.values())), strict=True)
        return [results[index] for index in range(len(conversations))]

    def _said(self, messages: Sequence[Message]) -> list[str]:
        characters = sum(len(message.content) for message in messages)
        if characters > MOST_CHARACTERS:
            raise ChatTemplateError(f"the conversation has {characters:,} characters: more than a model can read at once")
        return [encodable(message.content.strip() if self._strips else message.content) for message in messages]

    def _found(
        self, roles: _Roles, prompted: bool, said: list[str], text: str, reason: str = ""
    ) -> tuple[Layout, list[str]]:
        """A conversation as a model's template wrote it: its layout, and the messages as they stand in `text`."""
        if reason:
            raise ChatTemplateError(reason)
        usual, layout = self._frame(roles, prompted)
        kept = align(usual, said, text)
        if kept is not None:
            return layout, kept
        # What a template writes because of what was said may be a piece of it: then no control token may be in that.
        controls = self._encoder.controls
        if any(controls.pattern.search(content) for content in said):
            raise ChatTemplateError("the template changes what it writes because a message holds a control token's text")
        unusual, kept = search(usual, said, text)
        return controls.layout(unusual, roles, prompted=prompted), kept

    def _frame(self, roles: _Roles, prompted: bool) -> tuple[Skeleton, Layout]:
        """What is written around messages with these roles, rendered once. ChatTemplateError when they are refused."""
        kept = self._kept.get((roles, prompted))
        if kept is None:
            try:
                found = skeleton(self._render, roles, prompted=prompted)
                kept = found, self._encoder.controls.layout(found, roles, prompted=prompted)
            except ChatTemplateError as error:
                kept = str(error)
            if self._kept_messages > _MOST_KEPT:
                self._kept.clear()
                self._kept_messages = 0
            self._kept[roles, prompted] = kept
            self._kept_messages += len(roles)
        if isinstance(kept, str):
            raise ChatTemplateError(kept)
        return kept


def _roles(messages: Sequence[Message]) -> _Roles:
    return tuple(message.role for message in messages)
