"""A process that runs hostile cases one after the other and measures each: processor time and peak memory.

Reads {"module", "name", "folder"} from its input, a line each, and answers {"wrong", "seconds", "peak_bytes"}. It is the
process that is measured, so that neither the test runner nor what makes the files counts.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

from tests.hostile import case

ADDRESS_SPACE_BYTES = 8 << 30
"""No more, lest a case that fails take the machine with it."""


def processes() -> list[str]:
    """This one, and those that it started."""
    return ["self", *(pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split())]


def peak_bytes() -> int:
    """The largest resident memory of a process since `forget_peak`, where the system can say so; else since the start."""
    try:
        peaks = [Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0] for pid in processes()]
        return max(int(peak) << 10 for peak in peaks)
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        for pid in processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        task = json.loads(line)
        (found,) = [c for c in importlib.import_module(task["module"]).CASES if c.name == task["name"]]
        forget_peak()
        began = time.process_time()
        try:
            wrong = case.run(found, Path(task["folder"]))
        except BaseException:
            wrong = [traceback.format_exc()]
        answer = {"wrong": wrong, "seconds": time.process_time() - began, "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
