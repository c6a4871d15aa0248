"""Makes the disk fail, or the process die, at a chosen operation of `lmloop.durable`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from lmloop import durable

NEEDS_ROOM = {"open", "write", "link", "replace", "fsync"}
"""Operations that a full disk can refuse; removing always works."""


@contextlib.contextmanager
def hooked(hook: Callable[[str, Path], None]) -> Iterator[None]:
    former = durable.before_operation
    durable.before_operation = hook
    try:
        yield
    finally:
        durable.before_operation = former


def operations_of(action: Callable[[], object]) -> list[str]:
    """The names of the operations that `action` does."""
    names: list[str] = []
    with hooked(lambda name, path: names.append(name)):
        action()
    return names


def failing_at(
    index: int, number: int = errno.ENOSPC, *, and_after: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Operation `index` raises OSError(number); with `and_after` so does everything later that needs room."""
    count = -1

    def hook(name: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == index or (and_after and count > index and name in NEEDS_ROOM):
            raise OSError(number, os.strerror(number), str(path))

    return hooked(hook)


def killed_at(index: int, action: Callable[[], object]) -> bool:
    """Do `action` in a forked child that is killed before operation `index`. False: it came to its end."""
    count = -1

    def hook(name: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == index:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = 99
        try:
            with hooked(hook):
                action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the child ended with {code} at operation {index}"
    return code == -signal.SIGKILL


class Dead(BaseException):
    """Stands for the end of the process."""


def stopped_dead_at(index: int, action: Callable[[], object]) -> bool:
    """As `killed_at`, but within this process and hence fast: from operation `index` on none is done any more."""
    count = -1

    def hook(name: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count >= index:
            raise Dead

    try:
        with hooked(hook):
            action()
    except Dead:
        return True
    return False


def clone(source: Path, target: Path) -> Path:
    """Copy a flat folder; names of one file stay names of one file."""
    target.mkdir()
    copies: dict[int, Path] = {}
    for path in sorted(source.iterdir()):
        inode = path.stat().st_ino
        if inode in copies:
            os.link(copies[inode], target / path.name)
        else:
            copies[inode] = target / path.name
            copies[inode].write_bytes(path.read_bytes())
    return target
