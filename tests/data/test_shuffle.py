from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.data.shuffle import Shuffled, permutation


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation(count: int) -> None:
    assert sorted(permutation(count, 3, 1).tolist()) == list(range(count))


def test_it_depends_on_seed_and_epoch_only() -> None:
    base = permutation(50, 0, 0).tolist()
    assert base == permutation(50, 0, 0).tolist()
    others = [permutation(50, seed, epoch).tolist() for seed, epoch in [(1, 0), (0, 1), (2**63 - 1, 0), (0, 10**9)]]
    assert len({tuple(order) for order in [base, *others]}) == 5


def test_it_equals_splitmix64_written_out() -> None:
    def mixed(value: int) -> int:
        mask = 2**64 - 1
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    key = mixed((mixed((7 + golden) & mask) + 3 * golden) & mask)
    hashes = [mixed((key + (index + 1) * golden) & mask) for index in range(200)]
    assert permutation(200, 7, 3).tolist() == sorted(range(200), key=hashes.__getitem__)


def test_it_looks_random() -> None:
    order = permutation(20_000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lines.jsonl").write_text(
        "".join(("\nbad\n" if n == 5 else "") + json.dumps({"text": f"line {n}"}) + "\n" for n in range(20))
    )
    (tmp_path / "array.json").write_text(json.dumps([{"text": f"item {n}"} for n in range(10)]))
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(15)]}), tmp_path / "p.parquet", row_group_size=4)
    for n in range(5):
        (tmp_path / f"t{n}.txt").write_text(f"text {n}\n" * 20 + ("\xff" if n == 3 else ""), encoding="latin-1")
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"chunk_size": 40}])
def test_every_document_once_in_another_order_each_epoch(folder: Path, opened, every_resume, options: dict) -> None:
    it = opened(folder, **options)
    plain = {document.id: document.text for document in it.documents()}
    shuffled = Shuffled(it.source, 5, it.notices.append)
    orders = [every_resume(shuffled, epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == sorted(plain)
    assert len({tuple(order) for order in [*orders, list(plain)]}) == 3
    documents = [document for document, _ in shuffled.read({}, 0)]
    assert {document.id: document.text for document in documents} == plain
    assert documents[-1].progress == 1.0
    assert [d.progress for d in documents] == sorted(d.progress for d in documents)
    assert ("lines.jsonl", 7) in [row[:2] for row in it.bad]
    assert it.notices == []


def test_wanted_parents_keep_the_order(folder: Path, opened) -> None:
    it = opened(folder)
    shuffled = Shuffled(it.source, 5, it.notices.append)
    every = [document.id for document, _ in shuffled.read({}, 2)]
    wanted = set(every[::3])
    assert [document.id for document, _ in shuffled.read_where(wanted.__contains__, {}, 2)] == [
        name for name in every if name in wanted
    ]


def test_changed_files_are_noticed(folder: Path, opened) -> None:
    it = opened(folder)
    position = list(Shuffled(it.source, 5, it.notices.append).read({}))[10][1]
    (folder / "t0.txt").unlink()
    again = opened(folder)
    rest = list(Shuffled(again.source, 5, again.notices.append).read(position))
    assert len(rest) > 20
    assert ["in a new random order" in notice for notice in again.notices] == [True]


def test_a_file_that_goes_while_it_is_read(folder: Path, opened) -> None:
    it = opened(folder)
    shuffled = Shuffled(it.source, 5, it.notices.append)
    reading = shuffled.read({})
    next(reading)
    (folder / "p.parquet").unlink()
    assert len([0 for document, _ in reading if not document.id.startswith("p.")]) >= 30
    assert any("cannot be opened" in reason for _, _, reason in it.bad)
