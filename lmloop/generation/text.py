"""Tokens to text one token at a time, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character: at the end of a text perhaps the first bytes of one."""

MAX_PENDING_TOKENS = 16
"""A character has at most four bytes; a longer run of tokens that are no text is passed on as it is."""


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens."""
        ...


class TextStream:
    """The text of a growing list of tokens, given out as soon as it is certain.

    Decoding each token alone would be wrong twice: a character may be spread over tokens, and some decoders drop a space
    at the beginning. So each step decodes a short window that begins at a finished character a little before what is new
    (the scheme of Hugging Face's text-generation-inference): the text that was given out before is cut off.
    """

    def __init__(self, tokenizer: Decodes, context: Sequence[int] = ()) -> None:
        """`context` are the tokens that come before; their text is not given out."""
        self._tokenizer = tokenizer
        self._window = list(context)
        self._known = len(self._window)  # tokens of the window whose text is out
        self._shown = len(tokenizer.decode(self._window)) if context else 0  # characters of the window's text that are out

    def feed(self, token: int) -> str:
        """The text that is certain now and was not before; often empty in the middle of a character."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        finished = not text.endswith(UNFINISHED)
        if not finished and len(self._window) - self._known < MAX_PENDING_TOKENS:
            text = text.rstrip(UNFINISHED)
            new, self._shown = text[self._shown :], max(self._shown, len(text))
            return new
        new = text[self._shown :]
        self._window = self._window[self._known :]
        self._known = len(self._window)
        self._shown = len(self._tokenizer.decode(self._window))
        return new
