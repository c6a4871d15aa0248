"""Line files of a run (`metrics.jsonl`, `samples.jsonl`): one JSON object a line, without gap or repetition over resumes.

A checkpoint stores the `offset` of each such file at its step; resuming cuts the file back to it, so that the lines of the
steps after that checkpoint are written a second time but stand there once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmloop import durable


class MetricsFile:
    """One line file; a missing one counts as empty. Writing needs the run's lock. Without a path nothing is written: of
    several processes one writes.

    Lines that the disk refuses wait for the next write or `sync`: a full disk stops training only when no checkpoint can
    be saved either.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._waiting: list[Mapping[str, Any]] = []
        self._offset = 0 if path is None else durable.complete_size(path)

    @property
    def offset(self) -> int:
        """Bytes of the complete lines: what a checkpoint stores."""
        return self._offset

    def write(self, obj: Mapping[str, Any]) -> OSError | None:
        """Append `obj` as a line; NaN and infinities become null. A line torn by a crash is cut off first.

        Returns the error where the line has to wait.
        """
        if self.path is None:
            return None
        self._waiting.append(obj)
        try:
            self._catch_up(self.path)
        except OSError as error:
            return error
        return None

    def _catch_up(self, path: Path) -> None:
        while self._waiting:
            self._offset = durable.append_line(path, self._waiting[0])
            del self._waiting[0]

    def truncate(self, offset: int) -> bool:
        """Cut back to `offset`, which a checkpoint stored. Returns False where the file does not have that much any more."""
        if self.path is None:
            return True
        complete = durable.truncate_to(self.path, offset)
        self._offset = durable.complete_size(self.path)
        return complete

    def sync(self) -> None:
        """Wait until all lines are on the disk.

        Called before a save, so that no checkpoint stores an offset that a power failure takes back.
        OSError where the disk refuses.
        """
        if self.path is None:
            return
        self._catch_up(self.path)
        durable.sync(self.path)
