"""A folder is there whole, or as it was."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest

from lmloop.export.publish import RECORD, published, read_record


def publish(target: Path, content: str, name: str = "model.bin") -> None:
    with published(target) as folder:
        (folder / name).write_text(content)
        (folder / RECORD).write_text(json.dumps({"format": "hf"}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_and_its_successor(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    publish(target, "one")
    record = read_record(target)
    assert record == {"format": "hf", "files": {"model.bin": 3}}
    publish(target, "second", name="other.bin")
    assert names(target) == [RECORD, "other.bin"]
    assert names(target.parent) == ["out"]


def test_every_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    with published(tmp_path / "out") as folder:
        (folder / "model.bin").touch(mode=0o600)
        (folder / RECORD).write_text("{}")
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {plain.stat().st_mode}


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out", "one")
    assert names(tmp_path / "out") == [RECORD, "model.bin"]


def test_what_goes_wrong_leaves_everything_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def broken() -> None:
        with published(target) as folder:
            (folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert names(tmp_path) == []
    publish(target, "one")
    with pytest.raises(ZeroDivisionError):
        broken()
    assert names(tmp_path) == ["out"]
    assert (target / "model.bin").read_text() == "one"


def test_other_peoples_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    publish(tmp_path / "mixed", "one")
    (tmp_path / "mixed" / "diary.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mixed")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / RECORD).write_text("[]")
    reasons = {"notes": "no export", "file": "no export", "mixed": r"diary\.txt", "link": "no export", "broken": "no export"}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason) as error, published(tmp_path / name):
            pytest.fail("never begun")
        assert "\n" not in str(error.value)
    assert (tmp_path / "mixed" / "diary.txt").read_text() == "mine"
    assert len(names(tmp_path)) == 5


def test_a_file_that_appears_meanwhile_is_safe(tmp_path: Path) -> None:
    def meanwhile() -> None:
        with published(tmp_path / "out") as folder:
            (folder / RECORD).write_text("{}")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "diary.txt").write_text("mine")

    with pytest.raises(ValueError, match="no export"):
        meanwhile()
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"


def test_a_killed_export_is_no_obstacle(tmp_path: Path) -> None:
    target = tmp_path / "out"
    child = os.fork()
    if child == 0:
        with published(target) as folder:
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(tmp_path) == [".out.tmp"]
    publish(target, "one")
    assert names(tmp_path) == ["out"]
    assert names(target) == [RECORD, "model.bin"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    publish(target, "one")
    os.rename(target, tmp_path / ".out.old")
    with pytest.raises(ZeroDivisionError), published(target):
        raise ZeroDivisionError
    assert (target / "model.bin").read_text() == "one"
    assert names(tmp_path) == ["out"]


def test_a_failed_rename_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    publish(target, "one")
    rename = os.rename

    def failing(source: Path, to: Path) -> None:
        if Path(source).name == ".out.tmp":
            raise OSError(5, "Input/output error", str(to))
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        publish(target, "two")
    assert (target / "model.bin").read_text() == "one"
    assert names(tmp_path) == ["out"]


def test_two_at_a_time_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    descriptor = os.open(tmp_path / ".out.tmp", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match="another export to this folder is running"):
            publish(tmp_path / "out", "one")
        assert names(tmp_path) == [".out.tmp"]
    finally:
        os.close(descriptor)
