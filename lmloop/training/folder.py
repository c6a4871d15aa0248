"""The folder of a run: made for it, and taken away again where setting up the run fails."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lmloop.training.lock import LockedError, RunLock


@contextlib.contextmanager
def run_folder(run_dir: Path) -> Iterator[None]:
    """Make and lock the folder. If the body fails before a checkpoint is there, nothing new is left behind.

    Raises:
        ValueError: the folder cannot be made, or another trainer has it.
    """
    missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        before = set(run_dir.iterdir())
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        why = "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise ValueError(f"output_dir {run_dir}: {why}: name a folder that can be written") from None
    try:
        with RunLock(run_dir):
            yield
    except LockedError:
        raise  # what is new there is another trainer's
    except BaseException:
        if not any(run_dir.glob("lm_*.pth")):
            for path in set(run_dir.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for folder in missing:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    folder.rmdir()
        raise
