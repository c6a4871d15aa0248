"""The operations that state is written with."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import resource
from pathlib import Path

import pytest

from lmloop import durable
from tests.faults import failing_at, killed_at, operations_of


def test_atomic_write_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    durable.atomic_write(path, "eins ä\n")
    durable.atomic_write(path, b"\x00two")
    assert path.read_bytes() == b"\x00two"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_syncs_before_and_after_the_rename(tmp_path: Path) -> None:
    names = operations_of(lambda: durable.atomic_write(tmp_path / "a", "x"))
    assert names == ["open", "write", "fsync", "close", "replace", "fsync_dir"]


def test_atomic_write_killed_or_refused_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for index in range(6):
        path.write_text("old")
        with failing_at(index), pytest.raises(OSError, match="No space left"):
            durable.atomic_write(path, "new")
        assert path.read_text() == ("old" if index < 5 else "new")
        assert list(tmp_path.iterdir()) == [path]
        path.write_text("old")
        assert killed_at(index, lambda: durable.atomic_write(path, "new"))
        assert path.read_text() == ("old" if index < 5 else "new")
        for leftover in durable.leftovers(tmp_path):
            leftover.unlink()


def test_lone_surrogate_does_not_stop_a_report(tmp_path: Path) -> None:
    durable.atomic_write(tmp_path / "a", "x\ud800y")
    assert (tmp_path / "a").read_text() == "x?y"


def test_leftover_with_a_second_name_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "needed").write_text("x")
    os.link(tmp_path / "needed", durable.temporary(tmp_path / "a"))
    durable.atomic_write(tmp_path / "a", "new")
    assert (tmp_path / "needed").read_text() == "x"


def test_rename_of_two_names_of_one_file_leaves_one(tmp_path: Path) -> None:
    """POSIX keeps both names then; a temporary would stay for ever."""
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    durable.replace(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("supported", [True, False])
def test_link_or_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not supported:
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"leftover")
    durable.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x" * 3_000_000
    assert (tmp_path / "a").samefile(tmp_path / "b") == supported
    if not supported:
        (tmp_path / "b").unlink()
        with failing_at(3), pytest.raises(OSError, match="No space left"):
            durable.link_or_copy(tmp_path / "a", tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_full_disk_is_no_reason_to_copy(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with failing_at(0, errno.EIO), pytest.raises(OSError, match="Input/output error"):
        durable.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("buffer_bytes", [1, 7, 1 << 20])
def test_hashing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int) -> None:
    monkeypatch.setattr(durable, "BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(durable, "PIECE_BYTES", 10)
    choose = random.Random(1)
    pieces = [choose.randbytes(choose.randrange(40)) for _ in range(100)]
    with durable.HashingFile(tmp_path / "a") as file:
        for piece in pieces:
            assert file.write(memoryview(piece)) == len(piece)
    content = b"".join(pieces)
    assert (tmp_path / "a").read_bytes() == content
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert file.bytes_written == len(content)


def test_hashing_file_reports_the_disk_whatever_its_user_makes_of_it(tmp_path: Path) -> None:
    """`torch.save` may turn the file's error into one of its own, or go on writing."""

    def save() -> None:
        with durable.HashingFile(tmp_path / "a") as file:
            try:
                file.write(b"x" * (durable.BUFFER_BYTES + 1))
            except OSError as error:
                file.write(b"more")
                raise RuntimeError("writing failed") from error

    with failing_at(1, errno.EIO), pytest.raises(OSError, match="Input/output error"):
        save()


def test_json_line_is_strict_json_in_one_line() -> None:
    text = "a\nb\u2028c\u2029d\x85e\ud800 ä \U0001f600"
    line = durable.json_line({"text": text, "bad": [math.nan, math.inf, (-math.inf, 1.5)], "ok": {"x": None}, 3: True})
    assert len(line.splitlines()) == 1
    line.encode()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(line, parse_constant=refuse) == {
        "text": text,
        "bad": [None, None, [None, 1.5]],
        "ok": {"x": None},
        "3": True,
    }
    assert "ä" in line


def test_append_line_that_the_system_cuts_short(tmp_path: Path) -> None:
    """The kernel lets the file grow to 1,000 bytes only: the line that does not fit leaves no trace."""
    path = tmp_path / "a.jsonl"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
            durable.append_line(path, {"text": "x" * 600})
            durable.append_line(path, {"text": "y" * 600})
        except OSError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert json.loads(path.read_text()) == {"text": "x" * 600}


def test_hook_is_idle_outside_tests(tmp_path: Path) -> None:
    assert durable.before_operation("write", tmp_path) is None
