"""Two trainers in one folder, and a lock whose holder was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmloop.training.lock import LockedError, RunLock


@contextlib.contextmanager
def holder_of(folder: Path, then: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Another process that has the lock and sleeps; its id."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            RunLock(folder).acquire()
            then()
            os.write(writer, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x", "the other process did not get the lock"
        yield child
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def test_second_trainer_is_told_who_is_there(tmp_path: Path) -> None:
    with holder_of(tmp_path / "run") as child:
        started = time.monotonic()
        with pytest.raises(LockedError) as caught:
            RunLock(tmp_path / "run").acquire()
        assert time.monotonic() - started < 1
        message = str(caught.value)
        assert f"process {child} on {socket.gethostname()}" in message
        assert str(tmp_path / "run") in message
        assert "\n" not in message
        assert isinstance(caught.value, ValueError)


def test_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    with holder_of(tmp_path) as child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert (tmp_path / ".lock").exists()
        with RunLock(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_worker_that_outlives_its_killed_trainer_keeps_no_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def start_worker() -> None:
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, f"{worker}\n".encode())

    with holder_of(tmp_path, start_worker) as child:
        worker = int(os.read(reader, 100))
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.kill(worker, 0)
            RunLock(tmp_path).acquire()
        finally:
            os.kill(worker, signal.SIGKILL)
            os.close(reader)
            os.close(writer)


def test_given_back_on_leaving(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} "):
        RunLock(tmp_path).acquire()
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    lock.release()
    with RunLock(tmp_path):
        pass


def test_forked_child_that_leaves_does_not_unlock(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(LockedError):
            RunLock(tmp_path).acquire()
