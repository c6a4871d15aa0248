"""What several processes decide alike, and what the first of them says and writes for all."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lmloop.hardware import this_machine
from lmloop.training.lock import RunLock
from tests.distributed import faults
from tests.distributed.harness import metrics, newest, record, run, start, write


def test_the_first_speaks_for_all(tmp_path: Path) -> None:
    folder = write(tmp_path, train={"threads": None})
    ended = run(folder, fault=faults.with_notices)
    assert ended.outputs[1] == ""
    said = [line for line in ended.outputs[0].splitlines() if "this" in line]
    assert said == ["! all of us see this", "! only 0 sees this", "! rank 1: only 1 sees this"]
    warnings = [entry["message"] for entry in record(folder)["warnings"]]
    assert warnings == [line.removeprefix("! ") for line in said]
    assert record(folder)["machine"]["processes"] == 2
    environment = newest(folder)["environment"]
    assert environment["processes"] == 2
    assert environment["threads"] == max(this_machine().cores // 2, 1)  # and not the one that a launcher sets


def test_json_is_printed_once(tmp_path: Path) -> None:
    ended = run(write(tmp_path), words=("train", "preset.json", "--json"))
    answers = [line for line in "".join(ended.outputs).splitlines() if line.startswith("{")]
    assert len(answers) == 1
    assert json.loads(answers[0])["status"] == "finished"


def test_bad_rows_are_set_aside_once(tmp_path: Path) -> None:
    """All ranks read a source that is one part; the first writes."""
    folder = write(tmp_path, data={"sources": [{"type": "files", "path": "rows.jsonl"}], "max_bad_fraction": 0.5})
    rows = [json.dumps({"text": f"row {number} " * 9}) for number in range(60)]
    (folder / "rows.jsonl").write_text("\n".join([*rows[:20], "{torn", *rows[20:40], "[]", *rows[40:]]) + "\n")
    run(folder)
    aside = [json.loads(line) for line in (folder / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in aside] == [21, 42]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_is_skipped_on_all(parallel: str, tmp_path: Path) -> None:
    train: dict[str, Any] = {"parallel": parallel, "save_every_steps": 2}
    one, three = write(tmp_path / "one", train=train), write(tmp_path / "three", train=train)
    run(one, fault=partial(faults.not_finite, on=1, first=4, last=4))
    assert [line["step"] for line in metrics(one) if line["loss"] is None] == [4]
    assert newest(one)["progress"]["skipped"] == 1
    ended = run(three, fault=partial(faults.not_finite, on=1, first=6, last=8))
    progress = newest(three)["progress"]
    assert (progress["skipped"], progress["rollbacks"], progress["rate_scale"]) == (3, 1, 0.5)
    assert "3 bad updates in a row: weights of step 6 again" in ended.outputs[0]
    assert all(bool(tensor.isfinite().all()) for tensor in newest(three)["model"].values())


@pytest.mark.parametrize(("parallel", "on"), [("ddp", 0), ("fsdp", 0), ("fsdp", 1)])
def test_a_save_that_one_disk_refuses_is_tried_again(parallel: str, on: int, tmp_path: Path) -> None:
    folder = write(tmp_path, train={"parallel": parallel, "save_every_steps": 4})
    ended = run(folder, fault=partial(faults.in_save, on=on, at=12, what="full"))
    assert ended.outputs[0].count("No space left on device") == 1
    assert "attempt 1 of 3" in ended.outputs[0]
    assert newest(folder)["progress"]["step"] == 12
    assert not list((folder / "run").glob(".*.tmp"))


def test_a_wrong_preset_is_one_line_and_ends_all(tmp_path: Path) -> None:
    ended = start(write(tmp_path), words=("train", "nowhere.json")).wait()
    assert ended.statuses == [2, 2]
    assert len(ended.outputs[0].splitlines()) == 1
    assert ended.outputs[0].startswith("lmloop: nowhere.json: no such file")
    assert ended.outputs[1] == ""


def test_a_folder_that_another_run_has_is_refused_by_all(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with RunLock(folder / "run"):
        ended = start(folder).wait()
    assert all(ended.statuses)
    assert ended.outputs[0].count("another training run is using this folder") == 1
    assert ended.outputs[1] == ""


def test_a_run_that_is_done_says_so_once(tmp_path: Path) -> None:
    folder = write(tmp_path)
    run(folder)
    before = (folder / "run" / "lm_current.pth").read_bytes()
    ended = run(folder)
    assert ended.outputs[0].count("tiny is done") == 1
    assert (folder / "run" / "lm_current.pth").read_bytes() == before
