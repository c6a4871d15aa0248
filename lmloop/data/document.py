"""A document and the place in its source where reading goes on after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Position = dict[str, Any]
"""Where a source goes on, after a document: small, and of JSON's types only. `{}` is the start."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source; always encodable as UTF-8.

    id: unique and stable in its source: `notes/a.txt`, `chats.jsonl#12` (line 12), `book.txt@3` (its third chunk),
        `owner/name:train#7` (the seventh row of a stream).
    parent: what splits keep together: the file of a chunk, else the id itself.
    progress: share of the source's pass that is done after this document, 0 to 1; 0.0 where the total is unknown.
    """

    id: str
    parent: str
    text: str
    progress: float
