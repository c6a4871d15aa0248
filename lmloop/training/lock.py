"""One trainer in a run folder: a lock that the system itself releases when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

_held: set[int] = set()
"""Descriptors of the locks of this process."""


class LockedError(ValueError):
    """Another trainer holds the folder; the message names its process and machine."""


class RunLock:
    """The right to write in `run_dir`, as a context manager. The folder is made if need be.

    `flock` on the file `.lock`: a holder that is killed leaves the file but not the lock. The file says who holds it, for
    the message only, and is never removed: a lock on a removed file would keep nobody out.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise LockedError at once."""
        assert self._descriptor is None, f"{self.run_dir} is locked by this very object"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise LockedError(
                    f"{self.run_dir}: another training run is using this folder ({holder}): "
                    "wait for it, stop it, or set another output_dir"
                ) from None
            raise LockedError(
                f"{self.run_dir}: the file system cannot lock files ({error.strerror}): set output_dir to a local disk"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, only its holder has no name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(descriptor)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is None:
            return
        if self._descriptor in _held:  # not so in a forked child, which has no part in the lock
            _held.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.pread(descriptor, 1_000, 0).decode("utf-8", "replace").strip() or "process unknown"
    return "process unknown"


def _drop_in_child() -> None:
    """A forked child (a loader's worker) that outlives a killed trainer must not keep its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)
