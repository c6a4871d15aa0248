from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from lmloop.data.quarantine import Quarantine, TooManyBadRows


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
