from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from lmloop.data.quarantine import Quarantine, TooManyBadRows
from tests import faults


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_is_recorded_once_over_epochs_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    first = Quarantine(path, 0.5)
    assert not path.exists()
    for _ in range(3):
        first.bad("s", "a.jsonl", 3, "not JSON", "x" * 1000)
    first.bad("s", "b.jsonl", 3, "not JSON")
    second = Quarantine(path, 0.5)
    second.bad("s", "a.jsonl", 3, "not JSON")
    second.bad("other", "a.jsonl", 3, "null")
    assert [(row["source"], row["file"], row["line"], row["reason"]) for row in rows(path)] == [
        ("s", "a.jsonl", 3, "not JSON"),
        ("s", "b.jsonl", 3, "not JSON"),
        ("other", "a.jsonl", 3, "null"),
    ]
    assert rows(path)[0]["excerpt"] == "x" * 160
    assert second.reasons("s") == {"not JSON": 2}
    assert second.reasons("nobody") == {}


def test_a_torn_last_line_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    Quarantine(path, 0.5).bad("s", "a", 1, "r")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"source": "s", "fi')
    again = Quarantine(path, 0.5)
    again.bad("s", "a", 2, "r")
    assert [row["line"] for row in rows(path)] == [1, 2]


@pytest.mark.parametrize(
    ("limit", "good", "bad", "raises"),
    [
        (0.2, 16, 4, False),
        (0.2, 15, 5, True),
        (0.2, 0, 19, False),
        (0.2, 0, 20, True),
        (0.0, 999, 1, True),
        (1.0, 0, 99, False),
    ],
)
def test_the_limit(limit: float, good: int, bad: int, raises: bool) -> None:
    quarantine = Quarantine(Path("q.jsonl"), limit)
    quarantine.path = None
    quarantine.bad("s", "a", 1, "rare")
    quarantine.bad("s", "a", 2, "often")
    quarantine.bad("s", "a", 3, "often")
    if not raises:
        quarantine.check("s", good, bad)
        return
    with pytest.raises(TooManyBadRows) as error:
        quarantine.check("s", good, bad)
    message = str(error.value)
    assert f"source 's': {bad} of the first {good + bad} rows are bad, most often: often" in message
    assert "max_bad_fraction" in message
    assert "\n" not in message


def test_threads_record_each_row_once(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 1.0)

    def work() -> None:
        for line in range(50):
            quarantine.bad("s", "a", line, "r")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["line"] for row in rows(tmp_path / "q.jsonl")) == list(range(50))  # type: ignore[type-var]


def test_a_full_disk_makes_lines_wait_and_loses_none(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "run" / "q.jsonl", 1.0)
    quarantine.bad("s", "a", 1, "r")
    with faults.failing_at(0, and_after=True):
        quarantine.bad("s", "a", 2, "r")
        quarantine.bad("s", "a", 3, "r")
        quarantine.bad("s", "a", 2, "r")
        with pytest.raises(OSError, match="No space left"):
            quarantine.sync()
    assert quarantine.reasons("s") == {"r": 3}
    assert [row["line"] for row in rows(tmp_path / "run" / "q.jsonl")] == [1]
    quarantine.bad("s", "a", 4, "r")
    assert [row["line"] for row in rows(tmp_path / "run" / "q.jsonl")] == [1, 2, 3, 4]
    with faults.failing_at(0):
        quarantine.bad("s", "a", 5, "r")
    quarantine.sync()
    assert [row["line"] for row in rows(tmp_path / "run" / "q.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("index", range(3))
def test_a_disk_that_fails_once_at_any_operation(tmp_path: Path, index: int) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 1.0)
    with faults.failing_at(index):
        for line in range(4):
            quarantine.bad("s", "a", line, "r")
    quarantine.sync()
    assert [row["line"] for row in rows(tmp_path / "q.jsonl")] == [0, 1, 2, 3]


def test_the_record_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.data.quarantine.MAX_RECORDED", 3)
    for _ in range(2):
        quarantine = Quarantine(tmp_path / "q.jsonl", 1.0)
        for line in range(10):
            quarantine.bad("s", "a", line, "r")
        quarantine.bad("other", "a", 1, "r")
    assert [(row["source"], row["line"], row["reason"]) for row in rows(tmp_path / "q.jsonl")] == [
        *(("s", line, "r") for line in range(3)),
        ("s", 0, "there are more than 3 bad rows"),
        ("other", 1, "r"),
    ]


def test_reasons_are_one_line_that_a_terminal_can_show(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.0)
    for line in range(20):
        quarantine.bad("s", "a", line, "no field 'x'; there are: \x1b[2J\n\ud83d" + "y" * 1000)
    (row, *_) = rows(tmp_path / "q.jsonl")
    assert str(row["reason"]).startswith("no field 'x'; there are: \\x1b[2J \\ud83dyyy")
    assert len(str(row["reason"])) == 500
    with pytest.raises(TooManyBadRows) as error:
        quarantine.check("s", 0, 20)
    assert str(error.value).isprintable()


def test_a_record_with_anything_in_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    good = {"source": "s", "file": "a", "line": 1, "reason": "r", "excerpt": ""}
    odd = [
        b"", b"\0" * 50, b"[" * 100_000, b"{}", b"[]", b"1", b'"s"', b"\xff", json.dumps({**good, "line": 1e999}).encode(),
        json.dumps({**good, "line": None}).encode(), json.dumps({**good, "source": ["s"]}).encode(),
    ]  # fmt: skip
    path.write_bytes(b"".join(line + b"\n" for line in [*odd, json.dumps(good).encode()]) + b'{"torn')
    quarantine = Quarantine(path, 1.0)
    assert quarantine.reasons("s") == {"r": 1}
    quarantine.bad("s", "a", 1, "r")
    quarantine.bad("s", "a", 2, "r")
    assert path.read_bytes().count(b"\n") == len(odd) + 2
