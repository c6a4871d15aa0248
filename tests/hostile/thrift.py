"""As much of Thrift's compact protocol as it takes to write a Parquet file that lies."""

from __future__ import annotations

import struct
from collections.abc import Sequence

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
BYTE_ARRAY, ZSTD = 6, 6
PLAIN, RLE, RLE_DICTIONARY, DELTA_BINARY_PACKED, DELTA_BYTE_ARRAY = 0, 3, 8, 5, 7
DATA_PAGE, DICTIONARY_PAGE = 0, 2


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def zigzag(number: int) -> bytes:
    return varint((number << 1) ^ (number >> 63))


def struct_of(*fields: tuple[int, int, object]) -> bytes:
    """(number, type, value) each."""
    out, last = b"", 0
    for number, kind, value in fields:
        out += bytes([(number - last) << 4 | kind]) + _value(kind, value)
        last = number
    return out + b"\0"


def _value(kind: int, value: object) -> bytes:
    if isinstance(value, int):
        return zigzag(value)
    if isinstance(value, bytes):
        return varint(len(value)) + value if kind == BINARY else value
    assert isinstance(value, tuple), value
    inner, items = value
    head = bytes([len(items) << 4 | inner]) if len(items) < 15 else bytes([0xF0 | inner]) + varint(len(items))
    return head + b"".join(_value(inner, item) for item in items)


def group_element(name: bytes, children: int) -> bytes:
    return struct_of((3, I32, 0), (4, BINARY, name), (5, I32, children))


def text_element(name: bytes = b"text") -> bytes:
    return struct_of((1, I32, BYTE_ARRAY), (3, I32, 0), (4, BINARY, name), (6, I32, 0))


def chunk(
    offset: int,
    stored: int,
    unpacked: int,
    values: int,
    *,
    codec: int = 0,
    dictionary: int | None = None,
    encoding: int = PLAIN,
) -> bytes:
    """A column chunk as the footer describes it."""
    pages = [] if dictionary is None else [(11, I64, dictionary)]
    metadata = struct_of(
        (1, I32, BYTE_ARRAY), (2, LIST, (I32, [encoding, RLE])), (3, LIST, (BINARY, [b"text"])), (4, I32, codec),
        (5, I64, values), (6, I64, unpacked), (7, I64, stored), (9, I64, offset), *pages,
    )  # fmt: skip
    return struct_of((2, I64, offset), (3, STRUCT, metadata))


def row_group(chunk: bytes, rows: int, unpacked: int = 1) -> bytes:
    return struct_of((1, LIST, (STRUCT, [chunk])), (2, I64, unpacked), (3, I64, rows))


def page(kind: int, content: bytes, unpacked: int, values: int, encoding: int = PLAIN) -> bytes:
    """A page's header, with sizes that need not be true, and its content."""
    detail = (
        (7, STRUCT, struct_of((1, I32, values), (2, I32, encoding)))
        if kind == DICTIONARY_PAGE
        else (5, STRUCT, struct_of((1, I32, values), (2, I32, encoding), (3, I32, RLE), (4, I32, RLE)))
    )
    return struct_of((1, I32, kind), (2, I32, unpacked), (3, I32, len(content)), detail) + content


def file(pages: bytes, schema: Sequence[bytes], groups: Sequence[bytes], rows: int) -> bytes:
    """A file with these pages from its fourth byte on."""
    footer = struct_of((1, I32, 1), (2, LIST, (STRUCT, list(schema))), (3, I64, rows), (4, LIST, (STRUCT, list(groups))))
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def one_column(pages: bytes, group: bytes, rows: int) -> bytes:
    return file(pages, [group_element(b"schema", 1), text_element()], [group], rows)
