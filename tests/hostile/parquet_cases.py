"""Parquet files: damaged ones, and small ones that decode to gigabytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile import thrift
from tests.hostile.case import Bad, Case
from tests.hostile.making import MEGABYTE


def table(columns: Callable[[], dict[str, Any]] | dict[str, Any], **options: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns() if callable(columns) else columns), out, **options)
    return out.getvalue()


def case(name: str, data: Callable[[], bytes], good: list[str] | range, *bad: Bad, **more: Any) -> Case:
    """A file `a.parquet`, and one that is good after it."""

    def make(folder: Path) -> None:
        (folder / "a.parquet").write_bytes(data())
        (folder / "b.parquet").write_bytes(table({"text": ["last"]}))

    return Case(
        name, make, {}, range(good.start + 1, good.stop + 1) if isinstance(good, range) else [*good, "last"], bad, **more
    )


def repeated(text: str, rows: int) -> dict[str, Any]:
    """A column that says `text` once, and then which of the one text it is."""
    import pyarrow

    indices = pyarrow.Array.from_buffers(pyarrow.int32(), rows, [None, pyarrow.py_buffer(bytes(4 * rows))])
    return {"text": pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([text]))}


def garbled() -> bytes:
    """The second of three row groups."""
    import pyarrow.parquet

    data = bytearray(table({"text": [f"{n:03}" * 50 for n in range(30)]}, row_group_size=10, use_dictionary=False))
    column = pyarrow.parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    for at in range(column.data_page_offset, column.data_page_offset + column.total_compressed_size):
        data[at] ^= 0xA5
    return bytes(data)


def compressed(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.Codec("zstd").compress(content, asbytes=True)


def one_page(content: bytes, unpacked: int, values: int, encoding: int = thrift.PLAIN) -> bytes:
    """A page whose footer says that it is small."""
    pages = thrift.page(thrift.DATA_PAGE, content, unpacked, values, encoding)
    described = thrift.chunk(4, len(pages), 1000, values, codec=thrift.ZSTD, encoding=encoding)
    return thrift.one_column(pages, thrift.row_group(described, values), values)


def page_of_gigabytes() -> bytes:
    """1.5 GB of zeros: as a text of no characters for each four of them."""
    import pyarrow

    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as out:
        for _ in range(1500):
            out.write(bytes(MEGABYTE))
    return one_page(packed.getvalue().to_pybytes(), 1500 * MEGABYTE, 1000)


def dictionary_of_gigabytes() -> bytes:
    """One text of 300 MB, which a thousand rows have."""
    import pyarrow

    size = 300 * MEGABYTE
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as out:
        out.write(struct.pack("<I", size))
        for _ in range(300):
            out.write(b"x" * MEGABYTE)
    first = thrift.page(thrift.DICTIONARY_PAGE, packed.getvalue().to_pybytes(), size + 4, 1)
    indices = b"\x00" + thrift.varint(1000 << 1)
    second = thrift.page(thrift.DATA_PAGE, compressed(indices), len(indices), 1000, thrift.RLE_DICTIONARY)
    pages = first + second
    described = thrift.chunk(
        4 + len(first), len(pages), 1000, 1000, codec=thrift.ZSTD, dictionary=4, encoding=thrift.RLE_DICTIONARY
    )
    return thrift.one_column(pages, thrift.row_group(described, 1000), 1000)


def lengths_without_end() -> bytes:
    """Lengths of prefixes of two thousand million values, written as: all the same."""
    block = (
        thrift.varint(128) + thrift.varint(4) + thrift.varint(2_000_000_000) + thrift.zigzag(0) + thrift.zigzag(0) + bytes(4)
    )
    return one_page(compressed(block * 2), 2 * len(block), 2_000_000_000, thrift.DELTA_BYTE_ARRAY)


def overlapping_groups() -> bytes:
    """A thousand row groups that are all the same bytes."""
    content = struct.pack("<I", 100_000) + b"x" * 100_000
    pages = thrift.page(thrift.DATA_PAGE, compressed(content), len(content), 1)
    group = thrift.row_group(thrift.chunk(4, len(pages), len(content), 1, codec=thrift.ZSTD), 1)
    return thrift.file(pages, [thrift.group_element(b"schema", 1), thrift.text_element()], [group] * 1000, 1000)


def rows_without_end() -> bytes:
    """A million million rows, says the footer."""
    pages = thrift.page(thrift.DATA_PAGE, compressed(b""), 0, 1)
    described = thrift.chunk(4, len(pages), 1000, 10**12, codec=thrift.ZSTD)
    return thrift.one_column(pages, thrift.row_group(described, 10**12), 10**12)


def negative_rows() -> bytes:
    pages = thrift.page(thrift.DATA_PAGE, compressed(b""), 0, 1)
    return thrift.one_column(pages, thrift.row_group(thrift.chunk(4, len(pages), 1, 1, codec=thrift.ZSTD), -5), -5)


def deep_schema() -> bytes:
    groups = [thrift.group_element(b"g", 1)] * 100_000
    schema = [thrift.group_element(b"schema", 2), thrift.text_element(), *groups, thrift.text_element(b"x")]
    return thrift.file(b"", schema, [], 0)


def wide_schema() -> bytes:
    schema = [thrift.group_element(b"schema", 900_001), thrift.text_element(), *[thrift.text_element(b"c")] * 900_000]
    return thrift.file(b"", schema, [], 0)


def invalid_text() -> dict[str, Any]:
    import pyarrow

    return {"text": pyarrow.array([b"a", b"caf\xe9", b"\xed\xa0\xbd", b"d"], pyarrow.binary()).view(pyarrow.string())}


def kinds() -> dict[str, Any]:
    import datetime
    import decimal

    return {"text": ["a"], "bytes": [b"b"], "time": [datetime.datetime(2020, 1, 1)], "decimal": [decimal.Decimal("1.5")]}


def nested() -> dict[str, Any]:
    return {"text": [["a"], ["b"]], "n": [{"k": 1}, None]}


def column(name: str, reason: str, text_field: str) -> Case:
    def make(folder: Path) -> None:
        (folder / "a.parquet").write_bytes(table(kinds))

    return Case(name, make, {"text_field": text_field}, [], [("a.parquet", 1, reason)])


def file_of(data: bytes) -> Callable[[], bytes]:
    return lambda: data


BAD = "not a Parquet file"
GROUP = "cannot be decoded"
TOO_LARGE = "more than 200 times as large as on the disk"

CASES = [
    case("empty", file_of(b""), [], ("a.parquet", 0, BAD)),
    case("JSON named .parquet", file_of(b'{"text": "a"}\n' * 100), [], ("a.parquet", 0, BAD)),
    case("magic and nothing else", file_of(b"PAR1"), [], ("a.parquet", 0, BAD)),
    case("wrong magic at the end", lambda: table({"text": ["a"]})[:-4] + b"PAR2", [], ("a.parquet", 0, BAD)),
    case("cut off in the footer", lambda: table({"text": ["a"]})[:-30], [], ("a.parquet", 0, BAD)),
    case("footer of zeros", file_of(b"PAR1" + bytes(200) + struct.pack("<I", 190) + b"PAR1"), [], ("a.parquet", 0, BAD)),
    case(
        "footer longer than the file",
        file_of(b"PAR1" + bytes(20) + struct.pack("<I", 2**31) + b"PAR1"),
        [],
        ("a.parquet", 0, BAD),
    ),
    case("encrypted", file_of(b"PARE" + bytes(20) + struct.pack("<I", 12) + b"PARE"), [], ("a.parquet", 0, BAD)),
    case(
        "no rows",
        lambda: table(
            {"text": []},
        ),
        [],
    ),
    case("no columns", lambda: table({}), [], ("a.parquet", 0, "no column 'text'; there are: none")),
    case(
        "no such column",
        lambda: table({"body": ["a"], "n": [1]}),
        [],
        ("a.parquet", 0, "no column 'text'; there are: body, n"),
    ),
    case("column of lists", lambda: table(nested), [], ("a.parquet", 1, "not text but a list"), ("a.parquet", 2, "a list")),
    case(
        "column of numbers",
        lambda: table({"text": [1.5, 2.5]}),
        [],
        ("a.parquet", 1, "a number"),
        ("a.parquet", 2, "a number"),
    ),
    case("column of nulls", lambda: table({"text": [None, None]}), [], ("a.parquet", 1, "null"), ("a.parquet", 2, "null")),
    column("column of bytes", "not text but bytes", "bytes"),
    column("column of times", "not text but a datetime", "time"),
    column("column of decimal numbers", "not text but a Decimal", "decimal"),
    case(
        "text that is not UTF-8",
        lambda: table(invalid_text),
        ["a", "d"],
        ("a.parquet", 2, "not UTF-8"),
        ("a.parquet", 3, "not UTF-8"),
    ),
    case(
        "garbled row group",
        garbled,
        [f"{n:03}" * 50 for n in (*range(10), *range(20, 30))],
        ("a.parquet", 20, "row group of 10 rows cannot be decoded"),
    ),
    case(
        "one row group of forty thousand rows",
        lambda: table({"text": ["x" * 2000] * 40_000}, use_dictionary=False),
        range(40_000, 40_001),
    ),
    case("four thousand row groups", lambda: table({"text": ["x"] * 4_000}, row_group_size=1), range(4_000, 4_001)),
    case(
        "a row of 40 MB",
        lambda: table({"text": ["a", "x" * 40 * MEGABYTE, "b"]}, use_dictionary=False),
        ["a", "b"],
        ("a.parquet", 2, "a row of 40 MB is too long"),
    ),
    case(
        "a row of 20 MB of control characters",
        lambda: table({"text": ["a", "\x01" * 20 * MEGABYTE, "b"]}),
        ["a", "b"],
        ("a.parquet", 2, "is too long"),
    ),
    case(
        "a million rows of one text of 1,000 characters",
        lambda: table(lambda: repeated("x" * 1000, 1_000_000)),
        range(10_000, 400_000),
        ("a.parquet", 1_000_000, TOO_LARGE),
    ),
    case(
        "a million rows of one text of 10 MB",
        lambda: table(repeated("x" * 10 * MEGABYTE, 1_000_000), dictionary_pagesize_limit=1 << 30),
        range(1, 100),
        ("a.parquet", 1_000_000, TOO_LARGE),
    ),
    case(
        "twenty million empty texts",
        lambda: table(repeated("", 20_000_000), row_group_size=20_000_000),
        [],
        ("a.parquet", 20_000_000, TOO_LARGE),
    ),
    case("page of gigabytes", page_of_gigabytes, [], ("a.parquet", 1000, GROUP)),
    case("dictionary of gigabytes", dictionary_of_gigabytes, [], ("a.parquet", 1000, GROUP)),
    case("lengths without end", lengths_without_end, [], ("a.parquet", 2_000_000_000, GROUP)),
    case("overlapping row groups", overlapping_groups, [], ("a.parquet", 0, "the sizes that it states")),
    case("rows without end", rows_without_end, [], ("a.parquet", 10**12, GROUP)),
    case("fewer rows than none", negative_rows, [], ("a.parquet", 0, BAD)),
    case("schema of a hundred thousand levels", deep_schema, [], ("a.parquet", 0, BAD)),
    case("schema of nine hundred thousand columns", wide_schema, [], ("a.parquet", 0, BAD)),
]
