"""Whole runs on hostile data and on a disk that is full."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmloop.cli import main
from tests import faults
from tests.hostile.making import lines as joined
from tests.hostile.making import record
from tests.runs import lines, write_preset

Capture = pytest.CaptureFixture[str]
ROWS = [record(f"row {number} of a file that has some bad rows") for number in range(300)]


def preset_for(folder: Path, rows: list[bytes], **data: Any) -> str:
    (folder / "rows.jsonl").write_bytes(joined(*rows))
    return str(write_preset(folder, data={"sources": [{"type": "files", "path": "rows.jsonl"}], "shuffle": False, **data}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_too_many_bad_rows_stop_the_start(here: Path, capsys: Capture) -> None:
    rows = [b"{bad" if number % 3 == 0 else row for number, row in enumerate(ROWS)]
    assert main(["train", preset_for(here, rows), "--json"]) == 2
    said = capsys.readouterr()
    (fault,) = [line for line in said.err.splitlines() if line.startswith("lmloop: ")]
    assert "rows are bad, most often: not JSON" in fault
    assert "Mend the data (`lmloop check-data` says what is wrong with it) or raise data.max_bad_fraction" in fault
    assert json.loads(said.out.splitlines()[-1]) == {"error": fault.removeprefix("lmloop: ")}
    assert not (here / "run").exists()


def test_too_many_bad_rows_later_stop_the_run_saved(here: Path, capsys: Capture) -> None:
    changes = {"max_bad_fraction": 0.1, "split": {"validation": 0.0}}
    assert main(["train", preset_for(here, ROWS, **changes), "--json"]) == 0
    saved = lines(here / "run" / "metrics.jsonl")[-1]["step"]
    rows = [b"{bad" if number >= 120 and number % 2 else row for number, row in enumerate(ROWS)]
    preset = Path(preset_for(here, rows, **changes))
    content = json.loads(preset.read_text())
    preset.write_text(json.dumps(content | {"train": content["train"] | {"max_steps": 500, "save_every_steps": 500}}))
    capsys.readouterr()
    assert main(["train", str(preset), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["status"] == "failed"
    assert "rows are bad, most often: not JSON" in answer["reason"]
    steps = [line["step"] for line in lines(here / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert json.loads((here / "run" / "lm_current.manifest.json").read_text())["step"] == steps[-1] == answer["step"] > saved
    bad = [row["line"] for row in lines(here / "run" / "quarantine.jsonl")]
    assert bad == [122 + 2 * number for number in range(len(bad))]


def test_few_bad_rows_are_left_out(here: Path) -> None:
    rows = [b"{bad" if number % 10 == 9 else row for number, row in enumerate(ROWS)]
    assert main(["train", preset_for(here, rows, max_bad_fraction=0.2), "--json"]) == 0
    bad = lines(here / "run" / "quarantine.jsonl")
    assert bad
    assert {row["reason"].split(":")[0] for row in bad} == {"not JSON"}


def test_a_disk_without_room_for_the_record_of_bad_rows(here: Path, capsys: Capture) -> None:
    """Room comes back before the first save: the lines have waited, and the run has not."""
    rows = [b"{bad" if number % 10 == 9 else row for number, row in enumerate(ROWS)]
    refused: list[str] = []

    def full(name: str, path: Path) -> None:
        if path.name == "quarantine.jsonl" and len(refused) < 12:
            refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    recorded = []
    for folder, disk in (("with_room", faults.hooked(lambda name, path: None)), ("without", faults.hooked(full))):
        (here / folder).mkdir()
        os.chdir(here / folder)
        with disk:
            assert main(["train", preset_for(Path(), rows, max_bad_fraction=0.2), "--json"]) == 0
        recorded.append(sorted(row["line"] for row in lines(Path("run", "quarantine.jsonl"))))
    assert "No space left" not in capsys.readouterr().err
    assert len(refused) == 12
    assert recorded[0] == recorded[1]
    assert len(recorded[0]) > 5
