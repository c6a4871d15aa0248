"""A finished folder appears under its name in one step, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmloop import durable

RECORD = "lmloop_export.json"
"""In every export: what it was made from, how it was checked, and which files belong to it."""


@contextlib.contextmanager
def published(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target`, which becomes `target` when the body ends well, and is removed when it does not.

    An older export in `target` is replaced. The body leaves RECORD in the folder; the files are synced before the name is.

    Raises:
        ValueError: something else is in `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prepared, old = durable.temporary(target), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.rename(old, target)  # a process was killed between the two renames below
    _require_replaceable(target)
    with _alone(prepared, target):
        try:
            yield prepared
            record = json.loads((prepared / RECORD).read_text(encoding="utf-8"))
            files = sorted(path for path in prepared.iterdir() if path.name != RECORD)
            sizes = {path.name: path.stat().st_size for path in files}
            durable.atomic_write(prepared / RECORD, json.dumps({**record, "files": sizes}, indent=2) + "\n")
            mode = (prepared / RECORD).stat().st_mode & 0o777
            for path in files:
                path.chmod(mode)  # some libraries write for the owner alone, whatever the user's umask
                durable.sync(path)
            _require_replaceable(target)  # it may have taken minutes
            _replace(prepared, target, old)
        finally:
            shutil.rmtree(prepared, ignore_errors=True)


@contextlib.contextmanager
def _alone(prepared: Path, target: Path) -> Iterator[None]:
    """Make the folder `prepared`, anew where a killed process left one; ValueError where a living one works in it."""
    for fresh in (False, True):
        with contextlib.suppress(FileExistsError):
            prepared.mkdir()
            fresh = True
        descriptor = os.open(prepared, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise ValueError(f"{target}: another export to this folder is running: wait for it") from None
            if not fresh:
                shutil.rmtree(prepared)
                continue
            yield
            return
        finally:
            os.close(descriptor)


def _replace(prepared: Path, target: Path, old: Path) -> None:
    """Give the new folder its name; the old one goes when that is done."""
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(prepared, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    durable.fsync_dir(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What RECORD says; None: the folder is no export."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def _require_replaceable(target: Path) -> None:
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    record = read_record(target) if target.is_dir() and not target.is_symlink() else None
    if record is None:
        raise ValueError(f"{target} exists and is no export: name another folder")
    other = sorted(path.name for path in target.iterdir() if path.name not in (RECORD, *record["files"]))
    if other:
        raise ValueError(f"{target} has files of another origin ({', '.join(other[:3])}): name another folder, or move them")
