from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.data import parquet_files


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


def test_held_groups_are_bounded(tmp_path: Path, monkeypatch, opened) -> None:
    monkeypatch.setattr(parquet_files, "HELD_BYTES", 3000)
    write(tmp_path / "a.parquet", {"text": ["x" * 100] * 100}, group=10)
    it = opened(tmp_path)
    assert len(it.texts()) == 100
    held = it.source._records[".parquet"]._groups
    assert 1 <= len(held) <= 3
