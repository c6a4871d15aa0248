"""Line files over crashes and resumes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from lmloop.training.metrics import MetricsFile
from tests.faults import failing_at, killed_at, operations_of


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_resume_from_an_older_checkpoint_has_no_gap_and_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    offsets = {}
    metrics = MetricsFile(path)
    for step in range(10):
        offsets[step] = metrics.offset
        metrics.write({"step": step})
    for start in (7, 3, 9):
        metrics = MetricsFile(path)
        assert metrics.truncate(offsets[start])
        assert metrics.offset == offsets[start]
        for step in range(start, 10):
            metrics.write({"step": step})
        assert steps(path) == list(range(10))


def test_missing_file_is_empty(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    assert metrics.offset == 0
    assert metrics.truncate(0)
    assert not metrics.truncate(50)
    metrics.sync()
    assert not (tmp_path / "m.jsonl").exists()


def test_shorter_file_is_left_alone(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.write({"step": 1})
    assert not metrics.truncate(metrics.offset + 10)
    assert steps(metrics.path) == [1]


def test_offset_inside_a_line_cuts_the_whole_line(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.write({"step": 1})
    end = metrics.offset
    metrics.write({"step": 2})
    assert not metrics.truncate(end + 3)
    assert metrics.offset == end
    assert steps(metrics.path) == [1]


def test_torn_line_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    MetricsFile(path).write({"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    metrics = MetricsFile(path)
    assert metrics.offset == len('{"step": 1}\n')
    metrics.write({"step": 2})
    assert steps(path) == [1, 2]
    assert metrics.offset == path.stat().st_size


def test_torn_line_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    MetricsFile(path).write({"step": 1, "text": "x" * 200_000})
    with path.open("a") as file:
        file.write("y" * 150_000)
    MetricsFile(path).write({"step": 2})
    assert steps(path) == [1, 2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_error_at_every_operation(tmp_path: Path, number: int) -> None:
    def start(path: Path) -> MetricsFile:
        path.write_text('{"step": 1}\n{"st')
        return MetricsFile(path)

    total = len(operations_of(lambda: start(tmp_path / "count").write({"step": 2})))
    assert total == 3  # open, truncate, write
    for index in range(total):
        metrics = start(tmp_path / f"{index}.jsonl")
        with failing_at(index, number):
            error = metrics.write({"step": 2})
        assert error is not None
        assert error.errno == number
        assert metrics.write({"step": 3}) is None
        assert steps(metrics.path) == [1, 2, 3]


def test_kill_at_every_operation(tmp_path: Path) -> None:
    for index in range(3):
        path = tmp_path / f"{index}.jsonl"
        path.write_text('{"step": 1}\n{"st')
        assert killed_at(index, lambda path=path: MetricsFile(path).write({"step": 2}))
        MetricsFile(path).write({"step": 2})
        assert steps(path) == [1, 2]


def test_a_full_disk_makes_lines_wait_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.write({"step": 1})

    def full(operation: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("lmloop.durable.before_operation", full)
        for step in (2, 3):
            error = metrics.write({"step": step})
            assert error is not None
            assert error.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space left"):
            metrics.sync()
    assert steps(metrics.path) == [1]
    assert metrics.write({"step": 4}) is None
    assert steps(metrics.path) == [1, 2, 3, 4]
    assert metrics.offset == metrics.path.stat().st_size


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = MetricsFile(None)
    assert metrics.write({"step": 1}) is None
    assert metrics.truncate(500)
    metrics.sync()
    assert metrics.offset == 0
    assert list(tmp_path.iterdir()) == []
