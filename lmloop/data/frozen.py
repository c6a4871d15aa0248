"""Held-out documents of streams: chosen from their heads at the first start, and kept in the run's folder from then on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmloop import durable
from lmloop.data.document import Document, Message, Pair, Position
from lmloop.data.source import ShardedSource, Source, is_broken, why_broken
from lmloop.data.split import parent_hash

HEAD_SHARE = 0.25
"""Share of the documents at a stream's head that is held out, for each part, until there are enough. The share of a preset
means nothing where the whole is endless; a tenth of the head would make a start wait for ten times as much text."""

MAX_READ = 4.0
"""The head ends after this many times the text that HEAD_SHARE should have needed."""

_KEPT = ("id", "parent", "text", "messages", "pair")


class FrozenPart:
    """Documents that were held out of a stream."""

    def __init__(self, name: str, documents: list[Document]) -> None:
        self.name = name
        self._documents = documents

    def parents(self) -> list[str]:
        """Each is its own."""
        return [document.parent for document in self._documents]

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass, in the order in which they were met."""
        for index in range(position.get("index", 0), len(self._documents)):
            yield self._documents[index], {"index": index + 1}


class StreamRest:
    """A stream without what was held out of it: neither the same documents nor, where the parts of a stream number their
    documents otherwise than the whole, the same texts."""

    def __init__(self, stream: Source, held_out: Sequence[Document]) -> None:
        self.name = stream.name
        self._stream = stream
        self._held_out = held_out
        self._ids = frozenset(document.id for document in held_out)
        self._texts = frozenset(document.text for document in held_out)

    @property
    def broken(self) -> bool:
        """The stream broke off."""
        return is_broken(self._stream)

    @property
    def why(self) -> str:
        """Why it did."""
        return why_broken(self._stream)

    def parents(self) -> None:
        """A stream has no end to list."""

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass over what trains."""
        for document, after in self._stream.read(position, epoch):
            if document.id not in self._ids and document.text not in self._texts:
                yield document, after

    def shard_count(self, limit: int) -> int:
        """As many as the stream has."""
        return self._stream.shard_count(limit) if isinstance(self._stream, ShardedSource) else 1

    def shard(self, index: int, count: int) -> StreamRest:
        """What trains of a part of the stream."""
        assert isinstance(self._stream, ShardedSource), self.name
        return StreamRest(self._stream.shard(index, count), self._held_out)


@dataclass(frozen=True)
class HeldOut:
    """What is held out of one stream."""

    validation: list[Document]
    test: list[Document]


def head(stream: Source, validation_characters: int, test_characters: int) -> HeldOut:
    """Choose documents from a stream's head by the hash of their ids, up to so many characters of each part. SourceError."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    wanted = (validation_characters, test_characters)
    have, read = [0, 0], 0
    for document, _ in stream.read({}):
        read += len(document.text)
        part = int(parent_hash(document.id) / 2**64 / HEAD_SHARE)
        if part < 2 and have[part] < wanted[part]:
            have[part] += len(document.text)
            parts[part].append(replace(document, progress=0.0))
        enough = all(mine >= his for mine, his in zip(have, wanted, strict=True))
        if enough or read > max(wanted) * MAX_READ / HEAD_SHARE:
            break
    return HeldOut(*parts)


def save(path: Path, parts: dict[str, list[Document]]) -> None:
    """Write the documents held out of each source, one JSON line each: {source, id, parent, text} and, of a conversation or
    a pair, {messages} or {pair}. OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"source": name, **{key: value for key, value in asdict(document).items() if key in _KEPT and value is not None}}
        for name, documents in parts.items()
        for document in documents or [Document("", "", "", 0.0)]
    )
    durable.atomic_write(path, "".join(durable.json_line(row) + "\n" for row in rows))


def load(path: Path) -> dict[str, list[Document]]:
    """What `save` wrote; empty where there is no such file. A source of which nothing could be held out has an empty list.

    ValueError when the file is damaged: another choice would let the model be judged on what it was trained on.
    """
    parts: dict[str, list[Document]] = {}
    if not path.exists():
        return parts
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                row = json.loads(line)
                if not all(isinstance(row[key], str) for key in ("source", "id", "parent", "text")):
                    raise TypeError("not a text")
                documents = parts.setdefault(row["source"], [])
                if row["id"]:
                    messages = _messages(row["messages"]) if "messages" in row else None
                    pair = _pair(row["pair"]) if "pair" in row else None
                    documents.append(Document(row["id"], row["parent"], row["text"], 0.0, messages, pair))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: restore it, or choose another output_dir to start anew") from None
    return parts


def _messages(rows: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(**row) for row in rows)


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(_messages(row["prompt"]), _messages(row["chosen"]), _messages(row["rejected"]), row["margin"])
