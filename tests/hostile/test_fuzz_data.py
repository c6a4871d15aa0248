"""Readers of data on what nobody thought of: nothing but the documented errors, good rows kept, exact resumes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmloop.data import json_stream, listing, text_files
from lmloop.data.files import Files
from lmloop.data.quarantine import Quarantine
from lmloop.data.records import BadRecordError, decode
from lmloop.preset.sources import FilesSource

Read = tuple[list[str], list[tuple[str, int, str]]]

FRAGMENTS = [
    b'{"text": "', b'"}', b'{"text": "a"}', b'{"text": 1}', b'"a"', b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\",
    b"\\u", b"\\ud83d", b"\\ude00", b"NaN", b"-Infinity", b"null", b"true", b"-0", b"1e400", b"9" * 40, b"\n",
    b"\r\n", b"\r", b"\n  ", b" ", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff", b"\xc3", b"\xe2\x80\xa8",
    b"\xf0\x9f\x98\x80", b"\xed\xa0\xbd", b"a", b"text", b'{"text": "a", "text": "b"}', b"[" * 1200, b"]" * 1200,
    b'{"k":' * 1200, b"//", b"/*", b"'",
]  # fmt: skip
ANYTHING = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=6), max_size=30).map(b"".join)
SMALL_BLOCKS = {
    json_stream: {"BLOCK_BYTES": 7, "UNFINISHED": 16},
    text_files: {"BLOCK_BYTES": 11},
    listing: {"BUFFER_BYTES": 5},
}


@contextmanager
def small_blocks(small: bool) -> Iterator[None]:
    """Blocks of a few bytes, so that everything lies across two of them."""
    with pytest.MonkeyPatch.context() as patch:
        for module, values in SMALL_BLOCKS.items() if small else ():
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield


@contextmanager
def source(content: bytes, name: str, **options: Any) -> Iterator[tuple[Files, Quarantine]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        quarantine = Quarantine(Path(folder) / "q.jsonl.hidden", 1.0)
        section = FilesSource.model_validate({"path": str(Path(folder) / name), **options})
        yield Files("corpus", section, quarantine, lambda line: None), quarantine


def read(content: bytes, name: str, **options: Any) -> Read:
    """Texts and bad rows; what holds for any file at all is checked on the way."""
    with source(content, name, **options) as (files, quarantine):
        whole = list(files.read({}))
        texts = [document.text for document, _ in whole]
        "".join(texts).encode("utf-8")
        assert len({document.id for document, _ in whole}) == len(whole)
        assert not any(text.isspace() or not text for text in texts)
        assert {document.parent for document, _ in whole} <= set(files.parents())
        for at in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1} & set(range(len(whole))):
            position = whole[at][1]
            assert list(files.read(json.loads(json.dumps(position)))) == whole[at + 1 :], position
        record = quarantine.path
        assert record is not None
        rows = [json.loads(line) for line in record.read_bytes().splitlines()] if record.exists() else []
        assert all(row["reason"].isprintable() for row in rows)
        return texts, [(row["file"], row["line"], row["reason"]) for row in rows]


@given(ANYTHING, st.sampled_from(["a.txt", "a.jsonl", "a.json"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_any_file(content: bytes, name: str, small: bool) -> None:
    with small_blocks(small):
        read(content, name)


@given(ANYTHING, st.integers(1, 50), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_bytes_in_chunks(content: bytes, chunk_size: int, small: bool) -> None:
    with small_blocks(small):
        texts, _ = read(content, "a.txt", chunk_size=chunk_size)
    assert all(len(text) <= chunk_size for text in texts)


@given(st.text(st.characters(exclude_characters="\r\0", codec="utf-8"), max_size=300), st.integers(1, 50), st.booleans())
@settings(max_examples=100, deadline=None)
def test_chunks_put_together_are_the_text(text: str, chunk_size: int, small: bool) -> None:
    with small_blocks(small):
        texts, bad = read(text.encode(), "a.txt", chunk_size=chunk_size)
    assert bad == []
    assert "".join("".join(texts).split()) == "".join(text.removeprefix("\ufeff").split())


GOOD = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: not text.isspace())
BAD_LINES = [
    b"{", b"}", b"junk", b'{"text": 1}', b'{"text": null}', b'{"other": "a"}', b'{"text": "a", "text": "b"}',
    b'{"text": NaN}', b'{"text": "caf\xe9"}', b'{"text": "a\0"}', b"[1]", b"[" * 2000, b'{"text": "a"} x', b"'a'",
    b'{"text": "a",}', b'"a', b"1",
]  # fmt: skip


def as_line(text: str, escaped: bool) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=escaped).encode()


@given(
    st.lists(st.tuples(GOOD, st.booleans()) | st.sampled_from(BAD_LINES), max_size=12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_jsonl_keeps_the_good_and_names_the_bad(rows: list[Any], line_break: bytes, small: bool) -> None:
    lines = [row if isinstance(row, bytes) else as_line(*row) for row in rows]
    with small_blocks(small):
        texts, bad = read(b"".join(line + line_break for line in lines), "a.jsonl")
    assert texts == [row[0] for row in rows if not isinstance(row, bytes)]
    assert [(file, line) for file, line, _ in bad] == [
        ("a.jsonl", n) for n, row in enumerate(rows, 1) if isinstance(row, bytes)
    ]


BAD_RECORDS = [
    b'{"text": 1}', b'{"text": null}', b'{"other": "a"}', b'{"text": "a", "text": "]"}', b'{"text": [NaN, "}]"]}',
    b"NaN", b"null", b'{"text": "caf\xe9"}', b"[1]", b"-1.5e3", b'{"text": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"n": {"k": [1], "k": "\\"]"}}',
]  # fmt: skip
"""Which are complete: what follows is found wherever it stands."""

BROKEN_RECORDS = [b'{"text": "a}', b"{'text': 'a'}", b'{"text": "a" "b"}', b'{"text": }', b"{text}", b'{"text": "a"']
"""After which what follows is found on the next line of its kind."""


@given(
    st.lists(st.tuples(GOOD, st.booleans()) | st.sampled_from(BAD_RECORDS), max_size=10),
    st.sampled_from([b",", b", ", b",\n", b"\n,\n  ", b""]),
    st.sampled_from([(b"[", b"]"), (b"\xef\xbb\xbf [ ", b" ]\n"), (b"[\n", b"\n]")]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_arrays_keep_the_good_and_name_the_bad(
    rows: list[Any], between: bytes, brackets: tuple[bytes, bytes], small: bool
) -> None:
    records = [row if isinstance(row, bytes) else as_line(*row) for row in rows]
    if between == b"":  # nothing tells where a number ends
        between = b" "
    with small_blocks(small):
        texts, bad = read(brackets[0] + between.join(records) + brackets[1], "a.json")
    assert texts == [row[0] for row in rows if not isinstance(row, bytes)]
    assert [line for _, line, _ in bad] == [n for n, row in enumerate(rows, 1) if isinstance(row, bytes)]


@given(
    st.lists(st.tuples(GOOD, st.booleans()) | st.sampled_from([*BAD_RECORDS[:5], *BROKEN_RECORDS]), min_size=1, max_size=10),
    st.sampled_from(["", "  ", "\t"]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_arrays_with_a_record_on_each_line_go_on_after_what_is_broken(rows: list[Any], indent: str, small: bool) -> None:
    records = [row if isinstance(row, bytes) else as_line(*row) for row in rows]
    content = b"[\n" + b",\n".join(indent.encode() + record for record in records) + b"\n]\n"
    with small_blocks(small):
        texts, bad = read(content, "a.json")
    assert texts == [row[0] for row in rows if not isinstance(row, bytes)]
    assert [line for _, line, _ in bad] == [n for n, row in enumerate(rows, 1) if isinstance(row, bytes)]


@given(st.text(max_size=60) | ANYTHING.map(lambda data: data.decode("utf-8", "surrogateescape")))
@settings(max_examples=300, deadline=None)
def test_decode_agrees_with_the_standard_library(text: str) -> None:
    """Where it gives a value at all; it refuses more."""

    assume(text.count("[") + text.count("{") < 500)  # the library compares no deeper
    try:
        value, end = decode(text)
    except BadRecordError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    expected, expected_end = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode(text)
    assert (value, end) == (expected, expected_end)


# ---- Parquet ----


@pytest.fixture(scope="module")
def parquet() -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    texts = [f"row {n} " + "ä" * (n % 7) for n in range(40)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts, "n": list(range(40))}), out, row_group_size=10, compression="zstd"
    )
    return out.getvalue()


@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255) | st.sampled_from([0, 255, 0x15])),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_damaged_parquet_file(parquet: bytes, changes: list[tuple[float, int]], end: float, cut: bool) -> None:
    data = bytearray(parquet)
    for place, value in changes:
        data[int(place * len(data))] = value
    texts, bad = read(bytes(data[: int(end * len(data))] if cut else data), "a.parquet")
    assert len(texts) <= 41
    assert texts or bad


# ---- patterns ----


@given(st.text("ab*?[]!{},/.\\^-~é\n", max_size=25), st.lists(st.text("ab/.[]é\n", max_size=12), max_size=3))
@settings(max_examples=500, deadline=1000)
def test_any_pattern_is_understood_or_refused(pattern: str, names: list[str]) -> None:
    fits: Callable[[str], bool]
    try:
        fits = listing.matcher(pattern)
    except ValueError as error:
        assert "pattern" in str(error)  # noqa: PT017
        return
    assert all(isinstance(fits(name), bool) for name in names)


@given(
    st.lists(st.sampled_from(["*", "?", "a", "b", "*a"]), max_size=9).map("".join), st.text("abc", min_size=1, max_size=9)
)
@settings(max_examples=500, deadline=None)
def test_stars_agree_with_the_standard_library(pattern: str, name: str) -> None:
    import fnmatch

    if pattern != "**":  # which is any number of folders
        assert listing.matcher(pattern)(name) == fnmatch.fnmatchcase(name, pattern)


@given(
    st.lists(
        st.binary(min_size=1, max_size=8).filter(lambda b: not set(b) & set(b"\0/")), min_size=2, max_size=2, unique=True
    )
)
def test_names_stay_different_on_one_line(names: list[bytes]) -> None:
    shown = [listing.printable(name.decode("utf-8", "surrogateescape")) for name in names]
    assert shown[0] != shown[1]
    assert all(name.isprintable() for name in shown)
