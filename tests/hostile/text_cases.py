"""Text and Markdown files."""

from __future__ import annotations

import gzip
import random

from tests.hostile.case import Case
from tests.hostile.making import MEGABYTE, Repeated, files

UTF8 = "not UTF-8"
NUL = "not text (NUL bytes)"
CHUNKS = {"chunk_size": 40}

GOOD_LINES = "".join(f"line {number}\n" for number in range(1, 31))
LINE = b"x" * 39 + b"\n"
RANDOM_BYTES = random.Random(7).randbytes(50_000)

CASES = [
    Case("empty", files(a__txt="", b__txt="b"), {}, ["b"]),
    Case("only white space", files(a__txt=" \r\n\t\u2003\n", b__txt="b"), {}, ["b"]),
    Case("one character", files(a__txt="x"), {}, ["x"]),
    Case("no line break at the end", files(a__txt="a\nb"), {}, ["a\nb"]),
    Case("byte order mark", files(a__txt="\ufeffa"), {}, ["a"]),
    Case("byte order mark and nothing else", files(a__txt="\ufeff", b__txt="b"), {}, ["b"]),
    Case("byte order mark in the middle", files(a__txt="a\ufeffb"), {}, ["a\ufeffb"]),
    Case("CRLF", files(a__txt="a\r\nb\r\n\r\nc"), {}, ["a\nb\n\nc"]),
    Case("CR alone", files(a__txt="a\rb\rc"), {}, ["a\rb\rc"]),
    Case("breaks of Unicode", files(a__txt="a\u2028b\u2029c\x85d\x0be\x0cf"), {}, ["a\u2028b\u2029c\x85d\x0be\x0cf"]),
    Case(
        "breaks of Unicode in chunks", files(a__txt="a\u2028" * 50), CHUNKS, ["a\u2028" * 20, "a\u2028" * 20, "a\u2028" * 10]
    ),
    Case("NUL bytes in one line", files(a__txt=GOOD_LINES + "x\0y\n"), {}, [GOOD_LINES], [("a.txt", 31, NUL)]),
    Case(
        "NUL bytes in one line of a chunked file",
        files(a__txt=GOOD_LINES + "x\0y\n"),
        {"chunk_size": 1000},
        [GOOD_LINES],
        [("a.txt", 31, NUL)],
    ),
    Case("nothing but NUL bytes", files(a__txt=b"\0" * 1000, b__txt="b"), {}, ["b"], [("a.txt", 1, NUL)]),
    Case(
        "invalid UTF-8 in one line",
        files(a__txt=GOOD_LINES.encode() + b"caf\xe9\n"),
        {},
        [GOOD_LINES],
        [("a.txt", 31, "not UTF-8 (byte 0xe9)")],
    ),
    Case("overlong UTF-8", files(a__txt=GOOD_LINES.encode() + b"\xc0\xaf\n"), {}, [GOOD_LINES], [("a.txt", 31, UTF8)]),
    Case(
        "surrogates in UTF-8", files(a__txt=GOOD_LINES.encode() + b"\xed\xa0\xbd\n"), {}, [GOOD_LINES], [("a.txt", 31, UTF8)]
    ),
    Case(
        "beyond Unicode", files(a__txt=GOOD_LINES.encode() + b"\xf4\x90\x80\x80\n"), {}, [GOOD_LINES], [("a.txt", 31, UTF8)]
    ),
    Case(
        "a character cut off at the end",
        files(a__txt=GOOD_LINES.encode() + b"\xf0\x9f\x98"),
        {},
        [GOOD_LINES],
        [("a.txt", 31, UTF8)],
    ),
    Case(
        "Latin-1",
        files(a__txt="für\ngrün\nsüß\n".encode("latin-1"), b__txt="b"),
        {},
        ["b"],
        [("a.txt", 1, "not a text file: 3 of 3 lines are not UTF-8")],
    ),
    Case(
        "Latin-1 in chunks",
        files(a__txt="für\ngrün\nsüß\n".encode("latin-1"), b__txt="b"),
        CHUNKS,
        ["b"],
        [("a.txt", 1, "not a text file: 3 of 3 lines are not UTF-8")],
    ),
    Case(
        "UTF-16 with a byte order mark",
        files(a__txt="abc\n".encode("utf-16"), b__txt="b"),
        {},
        ["b"],
        [("a.txt", 0, "UTF-16")],
    ),
    Case(
        "UTF-16 big-endian with a byte order mark",
        files(a__txt=b"\xfe\xff" + "abc\n".encode("utf-16-be"), b__txt="b"),
        CHUNKS,
        ["b"],
        [("a.txt", 0, "UTF-16")],
    ),
    Case(
        "UTF-16 without a byte order mark",
        files(a__txt="abc\ndef\nghi\n".encode("utf-16-le"), b__txt="b"),
        {},
        ["b"],
        [("a.txt", 1, "not a text file")],
    ),
    Case(
        "UTF-32 with a byte order mark",
        files(a__txt="abc\n".encode("utf-32"), b__txt="b"),
        {},
        ["b"],
        [("a.txt", 0, "UTF-32")],
    ),
    Case(
        "UTF-32 big-endian without a byte order mark",
        files(a__txt="ab\ncd\n".encode("utf-32-be"), b__txt="b"),
        {},
        ["b"],
        [("a.txt", 1, "not a text file")],
    ),
    Case(
        "gzip named .txt",
        files(a__txt=gzip.compress(RANDOM_BYTES, mtime=0), b__txt="b"),
        {},
        ["b"],
        [("a.txt", 1, "not a text file")],
    ),
    Case(
        "binary named .md",
        files(a__md=b"\x7fELF\x02\x01\x01\0" + RANDOM_BYTES, b__md="b"),
        CHUNKS,
        ["b"],
        [("a.md", 1, "not a text file")],
    ),
    Case("control characters", files(a__txt="a\x07\x1b[2J\x1b]0;x\x07\x08\x7fb"), {}, ["a\x07\x1b[2J\x1b]0;x\x07\x08\x7fb"]),
    Case(
        "not a character, and beyond the first plane",
        files(a__txt="\uffff\U0010ffff\U0001f600"),
        {},
        ["\uffff\U0010ffff\U0001f600"],
    ),
    Case("a thousand combining marks", files(a__txt="e" + "\u0301" * 1000), CHUNKS, 26),
    Case("chunks of one character", files(a__txt="a\r\nb c\U0001f600"), {"chunk_size": 1}, ["a", "b", "c", "\U0001f600"]),
    Case("chunks as large as may be", files(a__txt="ab " * 1000), {"chunk_size": 10_000_000}, ["ab " * 1000]),
    Case(
        "a bad line at every cut",
        files(a__txt=(LINE * 20 + b"\xff\n") * 5),
        CHUNKS,
        100,
        [("a.txt", 21 * n, UTF8) for n in range(1, 6)],
    ),
    Case(
        "half a million bad lines after a good megabyte",
        files(a__txt=Repeated(b"\xff\n", 500_000, before=b"a good line\n" * (MEGABYTE // 12 + 1000))),
        {"chunk_size": 1_000_000},
        1,
        10_000,
        stops="rows are bad",
        max_bad_fraction=0.2,
    ),
]
