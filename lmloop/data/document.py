"""A document and the place in its source where reading goes on after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Position = dict[str, Any]
"""Where a source goes on, after a document: small, and of JSON's types only. `{}` is the start."""

ROLES = ("system", "user", "assistant", "tool")
"""Who can speak in a conversation; `tool` is what a tool answered to the assistant."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one of ROLES said: a text that is not empty, always encodable as UTF-8."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways in which a conversation goes on, the better and the worse.

    `prompt` ends with what is to be answered; `chosen` and `rejected` begin with an assistant's message and differ.
    `margin` is by how much the one is better, in the data's own unit, 0 or more; None where the data does not say.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source; always encodable as UTF-8.

    id: unique and stable in its source: `notes/a.txt`, `chats.jsonl#12` (line 12), `book.txt@3` (its third chunk),
        `data/train-00000.parquet#7` (the seventh row of a file of the hub).
    parent: what splits keep together: the file of a chunk, else the id itself.
    progress: share of the source's pass that is done after this document, 0 to 1; 0.0 where the total is unknown.
    messages: a conversation, in the order that `data/conversation.py` demands. `text` then is a plain rendering of it.
    pair: two continuations of a conversation. `text` then is a plain rendering of the prompt and the better one.
    """

    id: str
    parent: str
    text: str
    progress: float
    messages: tuple[Message, ...] | None = None
    pair: Pair | None = None
