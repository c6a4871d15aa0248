from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.confined import OutOfMemory
from lmloop.data import parquet_files
from lmloop.data.listing import Listed, open_regular
from lmloop.data.parquet_files import Parquet
from lmloop.data.reader import START, BadRow, Row
from lmloop.data.records import RecordShape


def write(path: Path, columns: dict, group: int = 100) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=group)


def test_rows_over_groups_resume_anywhere(tmp_path: Path, opened, every_resume) -> None:
    texts = [f"täxt {n}" for n in range(300)]
    write(tmp_path / "a.parquet", {"text": texts, "n": list(range(300))}, group=70)
    write(tmp_path / "b.parquet", {"text": texts[:5]})
    it = opened(tmp_path)
    expected = {f"a.parquet#{n + 1}": text for n, text in enumerate(texts)}
    expected |= {f"b.parquet#{n + 1}": text for n, text in enumerate(texts[:5])}
    assert it.texts() == expected
    assert it.source.parents() == list(expected)
    documents = it.documents()
    assert documents[-1].progress == 1.0
    assert [d.progress for d in documents] == sorted(d.progress for d in documents)
    every_resume(it.source)


def test_fields_and_format(tmp_path: Path, opened) -> None:
    write(tmp_path / "a.parquet", {"q": ["1?", None, "3?"], "a": [[1.5], [2.0], [3.0]], "b": ["x", "y", "z"]})
    it = opened(tmp_path, fields=["q", "b"], format="{q}-{b}")
    assert it.texts() == {"a.parquet#1": "1?-x", "a.parquet#3": "3?-z"}
    assert it.bad == [("a.parquet", 2, "field 'q' is not text but null")]


def test_text_that_is_not_utf8_and_blank_rows(tmp_path: Path, opened) -> None:
    raw = pa.array([b"a", b"\xff", b" ", b"d"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    it = opened(tmp_path)
    assert it.texts() == {"a.parquet#1": "a", "a.parquet#4": "d"}
    ((_, row, reason),) = it.bad
    assert row == 2
    assert reason.startswith("not UTF-8")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"junk" * 100, b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet(tmp_path: Path, opened, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    write(tmp_path / "b.parquet", {"text": ["b"]})
    it = opened(tmp_path)
    assert it.texts() == {"b.parquet#1": "b"}
    ((file, row, reason),) = it.bad
    assert (file, row) == ("a.parquet", 0)
    assert reason.startswith("not a Parquet file: ")
    assert it.source.parents() == ["b.parquet#1"]


def test_a_damaged_row_group_is_passed_over(tmp_path: Path, opened) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{n:03}" * 50 for n in range(30)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    for at in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
        data[at] ^= 0xA5
    path.write_bytes(data)
    it = opened(tmp_path)
    assert list(it.texts().values()) == texts[:10] + texts[20:]
    assert "row group of 10 rows cannot be decoded" in it.bad[0][2]


def test_a_missing_column(tmp_path: Path, opened) -> None:
    write(tmp_path / "a.parquet", {"body": ["a"], "n": [1]})
    it = opened(tmp_path)
    assert it.texts() == {}
    assert it.bad == [("a.parquet", 0, "no column 'text'; there are: body, n")]


@pytest.mark.parametrize("confined", [True, False])
def test_both_ways_of_reading_give_the_same(tmp_path: Path, confined: bool) -> None:
    columns = {"text": ["a", None, "ä" * 3000, " ", "e"] * 50, "n": [1.5] * 250, "b": [b"\xff"] * 250}
    write(tmp_path / "a.parquet", columns, group=70)
    reader = Parquet(RecordShape(), confined=confined)
    file = open_regular(Listed("a.parquet", str(tmp_path / "a.parquet"), 0))
    with file.handle:
        rows = list(reader.rows(file, START, None))
        assert [row.number for row in rows] == list(range(1, 251))
        assert all(isinstance(row, BadRow) == (row.number % 5 == 2) for row in rows)
        assert [row.text for row in rows if isinstance(row, Row)] == ["a", "ä" * 3000, " ", "e"] * 50
        assert list(reader.rows(file, (1, 3, 73), lambda number: number % 100 == 0)) == [rows[99], rows[199]]
        assert list(reader.rows(file, rows[100].after, None)) == rows[101:]


def test_a_process_that_gives_up_ends_the_file_only(tmp_path: Path, monkeypatch, opened) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"] * 20}, group=10)
    write(tmp_path / "b.parquet", {"text": ["b"]})
    call = parquet_files._decoder.call

    def fails(*arguments: Any, timeout_s: float) -> Any:
        if arguments[0].endswith("a.parquet") and arguments[2] is not None and arguments[3] == 1:
            raise OutOfMemory("it needs more than 7 MB of memory")
        return call(*arguments, timeout_s=timeout_s)

    monkeypatch.setattr(parquet_files._decoder, "call", fails)
    it = opened(tmp_path)
    assert list(it.texts().values()) == ["a"] * 10 + ["b"]
    reason = "row group of 10 rows cannot be decoded after 0: it needs more than 7 MB of memory; nothing after it is read"
    assert it.bad == [("a.parquet", 20, reason)]


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, opened) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"] * 2000}, group=500)
    write(tmp_path / "other", {"text": ["b"] * 2000}, group=500)
    it = opened(tmp_path)
    texts = []
    for document, _ in it.source.read({}):
        if not texts:
            os.utime(tmp_path / "other", (1, 1))
            os.replace(tmp_path / "other", tmp_path / "a.parquet")
            parquet_files._decoder.close()  # as if it had forgotten the file
        texts.append(document.text)
    assert set(texts) == {"a"}
    assert [reason for _, _, reason in it.bad] == ["has changed while it was read; nothing after it is read"]
