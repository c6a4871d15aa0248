"""What the cases are made with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Make = Callable[[Path], None]

MEGABYTE = 1 << 20


def files(**contents: bytes | str | Iterable[bytes]) -> Make:
    """Files by name, with `__` for the dot; what gives pieces is written piece by piece."""
    return named({name.replace("__", "."): content for name, content in contents.items()})


def named(contents: dict[str, bytes | str | Iterable[bytes]]) -> Make:
    """Files by name."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                pieces = [content.encode()] if isinstance(content, str) else content
                for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                    out.write(piece)

    return make


def both(*makes: Make) -> Make:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


class Repeated:
    """A piece of bytes so many times: each `iter` begins anew."""

    def __init__(self, piece: bytes, count: int, before: bytes = b"", after: bytes = b"") -> None:
        self._parts = (piece, count, before, after)

    def __iter__(self) -> Iterator[bytes]:
        piece, count, before, after = self._parts
        block = max(MEGABYTE // len(piece), 1)
        yield before
        for _ in range(count // block):
            yield piece * block
        yield piece * (count % block)
        yield after


def record(text: object, **more: object) -> bytes:
    return json.dumps({"text": text, **more}).encode()


def lines(*rows: bytes) -> bytes:
    return b"".join(row + b"\n" for row in rows)
