"""A side of a benchmark that stays up in a process of its own and works when it is its turn.

In one process the sides share an allocator and its settings, caches and threads, and one's choices become the other's.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, cast


class Served:
    """`python -m MODULE ARGUMENTS`, which calls `serve`. Called with the number of a round, it has a turn."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._name = " ".join([module, *arguments])
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._in, self._out = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self._answer()

    def __call__(self, number: int) -> Mapping[str, float]:
        """The seconds of a turn."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is said below
            self._in.write(f"{number}\n")
            self._in.flush()
        return self._answer()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def ended(self) -> bool:
        """The process is no more."""
        return self._process.poll() is not None

    def _answer(self) -> Mapping[str, float]:
        line = self._out.readline()
        if not line:
            self._process.wait()
            sys.exit(f"{self._name} ended: its last words stand above")
        return json.loads(line)


def serve(work: Callable[[], object]) -> None:
    """Do `work` once, since the first time allocates, and then once for every line that comes in, timed."""
    work()
    print("{}", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
