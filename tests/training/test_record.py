import contextlib
import json
from pathlib import Path

import pytest

from lmloop import durable
from lmloop.training.record import MAX_WARNINGS, PHASES, RunRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(run_dir: Path, clock: Clock | None = None) -> RunRecord:
    return RunRecord(
        run_dir,
        name="tiny",
        description="small",
        preset={"name": "tiny", "train": {"seed": 0}},
        preset_hash="abc",
        preset_path="configs/tiny.yaml",
        machine={"device": "cpu"},
        versions={"torch": "2.13"},
        clock=clock or Clock(),
    )


def content(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def test_a_session_from_start_to_finish(tmp_path: Path) -> None:
    record = make(tmp_path)
    assert not (tmp_path / "run.json").exists()
    record.start_session(0)
    running = content(tmp_path)
    assert running["status"] == "running"
    assert running["sessions"][0]["ended"] is None
    record.describe(parameters={"total": 10})
    record.finish("finished", "the budget is used up", to_step=40)
    done = content(tmp_path)
    assert (done["name"], done["description"], done["preset_hash"]) == ("tiny", "small", "abc")
    assert done["preset_path"] == "configs/tiny.yaml"
    assert done["parameters"] == {"total": 10}
    assert (done["status"], done["reason"]) == ("finished", "the budget is used up")
    [session] = done["sessions"]
    assert (session["from_step"], session["to_step"]) == (0, 40)
    assert session["started"] <= session["ended"]
    assert set(session["phases"]) == set(PHASES)


def test_phases_are_exclusive_and_survive_exceptions(tmp_path: Path) -> None:
    clock = Clock()
    record = make(tmp_path, clock)
    record.start_session(0)
    clock.now += 5  # in no phase
    with record.phase("train"):
        clock.now += 10
        with contextlib.suppress(RuntimeError), record.phase("evaluate"):
            clock.now += 3
            raise RuntimeError
        clock.now += 2
        record.write(to_step=1)
        assert content(tmp_path)["sessions"][0]["phases"]["train"] == 12  # as of now, though the phase goes on
        clock.now += 1
        record.move(4, source="train", target="data")
    phases = record.session["phases"]
    assert phases == {"setup": 0, "train": 9, "data": 4, "evaluate": 3, "sample": 0, "save": 0, "export": 0}


def test_no_more_is_moved_than_there_is(tmp_path: Path) -> None:
    clock = Clock()
    record = make(tmp_path, clock)
    record.start_session(0)
    with record.phase("train"):
        clock.now += 2
        record.move(50, source="train", target="data")
    assert record.session["phases"]["train"] == 0
    assert record.session["phases"]["data"] == 2


def test_the_next_session_keeps_what_was_recorded(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.start_session(0)
    first.warn("source c4 dropped", step=7)
    first.write(to_step=10)  # killed here
    second = make(tmp_path)
    second.start_session(8)
    second.warn("source c4 dropped", step=7)  # the resumed run passes step 7 again
    second.warn("source c4 dropped", step=9)
    second.finish("stopped", "asked to stop", to_step=12)
    done = content(tmp_path)
    assert [(s["from_step"], s["to_step"], s["ended"] is None) for s in done["sessions"]] == [(0, 10, True), (8, 12, False)]
    assert done["warnings"] == [{"step": 7, "message": "source c4 dropped"}, {"step": 9, "message": "source c4 dropped"}]


def test_warnings_are_bounded(tmp_path: Path) -> None:
    record = make(tmp_path)
    for step in range(MAX_WARNINGS + 30):
        record.warn("skipped", step=step)
    record.start_session(0)
    done = content(tmp_path)
    assert len(done["warnings"]) == MAX_WARNINGS
    assert done["warnings"][-1]["step"] == MAX_WARNINGS + 29
    assert done["warnings_dropped"] == 30


@pytest.mark.parametrize("broken", [b"", b'{"name": "ti', b"[1, 2]", b"\xff\xfe\x00"])
def test_an_unreadable_record_is_replaced_with_a_warning(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "run.json").write_bytes(broken)
    make(tmp_path).start_session(3)
    done = content(tmp_path)
    assert len(done["sessions"]) == 1
    assert "starts anew" in done["warnings"][0]["message"]


def test_a_full_disk_costs_the_record_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make(tmp_path)
    record.start_session(0)

    def full(path: Path, data: bytes | str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "atomic_write", full)
        record.write(to_step=5)
    assert content(tmp_path)["sessions"][0]["to_step"] == 0
    record.write(to_step=6)
    done = content(tmp_path)
    assert done["sessions"][0]["to_step"] == 6
    assert done["warnings"] == [{"step": 5, "message": "run.json could not be written: No space left on device"}]


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    record = make(tmp_path)
    record.describe(machine={"load": float("nan"), "folder": tmp_path})
    record.start_session(0)
    assert "NaN" not in (tmp_path / "run.json").read_text()
    assert content(tmp_path)["machine"] == {"load": None, "folder": str(tmp_path)}


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = RunRecord(None, name="tiny", preset={}, preset_hash="")
    record.start_session(0)
    record.warn("something", step=1)
    record.finish("finished", "done", to_step=3)
    assert record.session["to_step"] == 3
    assert list(tmp_path.iterdir()) == []
