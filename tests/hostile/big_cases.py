"""Files of hundreds of megabytes, which are written piece by piece or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.making import MEGABYTE, Make, Repeated, both, files, record

BIG = 200 * MEGABYTE
LETTERS = b"abcdefghijklmnopqrstuvwxyz012345" * 32
PIECES = ("a.txt (200 MB) is too large for one document",)
ROW = record("x" * 900)


def sparse(name: str, size: int) -> Make:
    """Zeros that take no room on the disk."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as out:
            os.truncate(out.fileno(), size)

    return make


B = files(b__txt="b")

CASES = [
    Case("text of one line", both(files(a__txt=Repeated(LETTERS, BIG // 1024)), B), {}, 54, notices=PIECES),
    Case("text of one line in chunks", files(a__txt=Repeated(LETTERS, BIG // 1024)), {"chunk_size": 100_000}, 2098),
    Case(
        "text of a smiley and a line of 200 MB",
        files(a__txt=Repeated(LETTERS, BIG // 1024, before="\U0001f600".encode())),
        {},
        53,
        notices=PIECES,
    ),
    Case(
        "text of the largest size for one document, with a smiley",
        files(a__txt=Repeated(LETTERS, 32 * 1024 - 1, before="\U0001f600\r\n".encode())),
        {},
        1,
    ),
    Case("zeros named .txt", both(sparse("a.txt", BIG), B), {}, ["b"], [("a.txt", 1, "NUL")], notices=PIECES),
    Case(
        "JSONL of one line",
        both(files(a__jsonl=Repeated(LETTERS, BIG // 1024, b'{"text": "', b'"}\n{"text": "a"}\n')), B),
        {},
        ["a", "b"],
        [("a.jsonl", 1, "line of 200 MB is too long")],
    ),
    Case(
        "JSONL of one line without an end",
        both(files(a__jsonl=Repeated(LETTERS, BIG // 1024)), B),
        {},
        ["b"],
        [("a.jsonl", 1, "line of 200 MB is too long")],
    ),
    Case("JSONL of zeros", both(sparse("a.jsonl", BIG), B), {}, ["b"], [("a.jsonl", 1, "line of 200 MB is too long")]),
    Case(
        "line of fifteen million numbers",
        files(a__jsonl=Repeated(b"1,", 15_000_000, b'{"n": [', b'1]}\n{"text": "a"}\n')),
        {},
        ["a"],
        [("a.jsonl", 1, "more than 4,000,000 values")],
    ),
    Case(
        "line of ten million empty lists",
        files(a__jsonl=Repeated(b"[],", 10_000_000, b'{"n": [', b'1]}\n{"text": "a"}\n')),
        {},
        ["a"],
        [("a.jsonl", 1, "more than 4,000,000 values")],
    ),
    Case(
        "line of 30 MB with a smiley",
        files(a__jsonl=Repeated(LETTERS, 30 * 1024, '{"text": "\U0001f600'.encode(), b'"}\n')),
        {},
        1,
    ),
    Case("line of 30 MB of commas in a text", files(a__jsonl=Repeated(b",", 30 * MEGABYTE, b'{"text": "', b'"}\n')), {}, 1),
    Case(
        "line of 30 MB of escaped quotes",
        files(a__jsonl=Repeated(b'\\"', 15 * MEGABYTE, b'{"text": "', b"\n")),
        {},
        [],
        [("a.jsonl", 1, "not JSON")],
    ),
    Case(
        "array without a line break",
        files(a__json=Repeated(ROW + b",", BIG // (len(ROW) + 1), b"[", ROW + b"]")),
        {},
        BIG // (len(ROW) + 1) + 1,
    ),
    Case(
        "record of 200 MB in an array without a line break",
        files(a__json=Repeated(LETTERS, BIG // 1024, b'[{"text": "a"}, {"text": "', b'"}, {"text": "b"}]')),
        {},
        ["a", "b"],
        [("a.json", 2, "a record of more than 32 MB is too long")],
    ),
    Case(
        "record of a hundred million lists in an array",
        files(a__json=Repeated(b"[[]],", 20_000_000, b'[{"text": "a"}, [', b'1], {"text": "b"}]')),
        {},
        ["a", "b"],
        [("a.json", 2, "more than 4,000,000 values")],
    ),
    Case(
        "text of 200 MB without its end",
        files(a__json=Repeated(LETTERS, BIG // 1024, b'[{"text": "a"}, {"text": "')),
        {},
        ["a"],
        [("a.json", 2, "a record of more than 32 MB is too long")],
    ),
    Case("JSON of opening brackets", files(a__json=Repeated(b"[", BIG)), {}, [], [("a.json", 1, "nested too deeply")]),
    Case("JSON of white space", both(files(a__json=Repeated(b" ", BIG)), B), {}, ["b"]),
    Case("JSON of zeros", both(sparse("a.json", BIG), B), {}, ["b"], [("a.json", 1, "not JSON")]),
    Case("Parquet of zeros", both(sparse("a.parquet", BIG), B), {}, ["b"], [("a.parquet", 0, "not a Parquet file")]),
    Case(
        "JSONL of bad rows",
        files(a__jsonl=Repeated(b"x\n", BIG // 2)),
        {},
        [],
        1,
        stops="rows are bad",
        max_bad_fraction=0.5,
    ),
    Case("JSONL of line breaks", both(files(a__jsonl=Repeated(b"\n", BIG)), B), {}, ["b"]),
]
