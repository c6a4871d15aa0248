from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.data import parquet_rows, parquet_worker
from lmloop.data.parquet_rows import NotReadableError, ParquetRows

ROWS = 3000
TEXTS = [f"{row} " + "x" * (row * 7919 % 500) for row in range(ROWS)]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """One row group."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet", data_page_size=4096)
    yield str(tmp_path / "a.parquet")
    parquet_worker._cursors.clear()
    parquet_worker._files.clear()


def texts(path: str, row: int, wanted: list[int]) -> list[str]:
    """As `parquet_files` asks: until all that is wanted has come."""
    found: list[str] = []
    version = os.stat(path).st_mtime_ns
    while wanted:
        answer = parquet_worker.serve(path, version, ["text"], 0, row, wanted)
        assert answer["fault"] is None, answer
        assert all(value is not None for _, value, _ in answer["values"])
        found += [value["text"] for _, value, _ in answer["values"]]
        wanted = [offset - answer["rows"] for offset in wanted if offset >= answer["rows"]]
        row += answer["rows"]
    return found


@pytest.mark.parametrize("held", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("answer", [1, 5_000, 1 << 30])
def test_rows_from_anywhere(path: str, monkeypatch: pytest.MonkeyPatch, held: int, answer: int) -> None:
    monkeypatch.setattr(parquet_worker, "HELD_BYTES", held)
    monkeypatch.setattr(parquet_worker, "ANSWER_BYTES", answer)
    monkeypatch.setattr(parquet_rows, "MAX_BATCH_ROWS", 100)
    chance = random.Random(7)
    for _ in range(60):
        row = chance.randrange(ROWS)
        wanted = sorted(chance.sample(range(min(300, ROWS - row)), k=min(chance.randrange(1, 20), ROWS - row)))
        assert texts(path, row, wanted) == [TEXTS[row + offset] for offset in wanted]
        assert len(parquet_worker._cursors) <= parquet_worker.MAX_CURSORS
        beside_the_last = [batch.nbytes for cursor in parquet_worker._cursors for batch in cursor._held[:-1]]
        assert sum(beside_the_last) <= 2 * held  # what was kept, and by the one that has just read


def test_an_answer_comes_in_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_worker, "SLICE_S", -1.0)
    version = os.stat(path).st_mtime_ns
    answer = parquet_worker.serve(path, version, ["text"], 0, 100, [0])
    assert answer == {"rows": 0, "values": [], "fault": None}


def test_two_readers_at_different_rows_go_on_without_decoding_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_worker, "HELD_BYTES", 1)
    monkeypatch.setattr(parquet_rows, "MAX_BATCH_ROWS", 100)
    begun = []
    batches = ParquetRows.batches
    monkeypatch.setattr(ParquetRows, "batches", lambda *arguments: begun.append(1) or batches(*arguments))
    for row in range(0, 1000, 50):
        for start in (2000, 0):
            assert texts(path, start + row, list(range(50))) == TEXTS[start + row : start + row + 50]
    assert len(begun) == 2


def test_what_comes_out_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "FREE_BYTES", 100_000)
    monkeypatch.setattr(parquet_rows, "MAX_BATCH_ROWS", 100)
    pq.write_table(pa.table({"text": ["x" * 500] * 20_000}), tmp_path / "a.parquet")
    size = (tmp_path / "a.parquet").stat().st_size
    with (tmp_path / "a.parquet").open("rb") as handle:
        rows: list[int] = []
        with pytest.raises(NotReadableError, match="more than 200 times"):
            rows.extend(batch.num_rows for batch in ParquetRows(handle, size).batches(0, ["text"]))
    assert 50_000 < sum(rows) * 500 <= 100_000 + 200 * size


@pytest.mark.parametrize(("sizes", "header"), [((5, 3), "15060000"), ((0, 300), "1500 15d804 1500")])
def test_the_size_in_a_page_header(sizes: tuple[int, int], header: str) -> None:
    data = bytes.fromhex(header)
    if sizes[0] == 0:
        assert parquet_rows._page_bytes(data) == sizes[1]
    else:
        with pytest.raises(ValueError, match="makes no sense"):
            parquet_rows._page_bytes(data)
