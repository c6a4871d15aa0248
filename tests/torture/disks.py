"""A disk that is full or broken, for a moment or for good."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.strikes import at_operation, before_operations
from tests.torture.harness import run_to_end
from tests.torture.workshop import Result, Workshop


def disk_full(folder: Path, *, every: int = 1) -> Result:
    """A full disk or an I/O error at each write of a save: training goes on, and ends as if nothing had happened."""
    shop, result = Workshop(folder), Result()
    names = ("open", "write", "fsync", "close", "replace", "link")
    for number, at in enumerate(range(1, 80, every)):
        code = errno.ENOSPC if number % 2 else errno.EIO

        def fail(code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        case = shop.case(f"full-{at}")
        ended = run_to_end(case, at_operation(at, fail, names))
        what = f"{errno.errorcode[code]} at operation {at}"
        if ended.status != 0:
            result.failures.append(f"{what}: ended with {ended.status}: {ended.output[-500:]}")
        if "attempt 1 of" not in ended.output:
            result.failures.append(f"{what}: nothing was said")
        shop.finish(case, result, what)
    return result


def disk_stays_full(folder: Path) -> Result:
    """A disk that stays full stops the run with a reason, the last good checkpoint whole."""
    shop, result = Workshop(folder), Result(cases=1)
    case = shop.case("stays-full")

    writes = 0

    def strike() -> None:
        nonlocal writes
        writes += 1
        if writes > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ended = run_to_end(case, before_operations(strike, ("write",)))
    if ended.status != 1 or "attempt 3 of 3" not in ended.output:
        result.failures.append(f"ended with {ended.status}: {ended.output[-500:]}")
    shop.finish(case, result, "with room again")
    return result
