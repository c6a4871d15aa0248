"""`make torture`: every scenario at full size; the result goes into docs/reliability.md."""

from __future__ import annotations

import platform
import re
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from tests.torture.scenarios import all_scenarios

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- result of `make torture` -->", "<!-- end of the result -->"


def main() -> int:
    rows, failed = [], False
    for name, scenario in all_scenarios():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = scenario(Path(folder))
        seconds = time.perf_counter() - started
        notes = ", ".join(f"{count} {what}" for what, count in result.notes.items())
        print(f"{name}: {result.cases} cases, {len(result.failures)} failures, {seconds:.0f} s {notes}", flush=True)
        for failure in result.failures[:20]:
            print(f"    {failure}", flush=True)
        failed |= bool(result.failures)
        rows.append(
            f"| {name} | {result.cases}{f' ({notes})' if notes else ''} | {len(result.failures)} | {seconds:.0f} s |"
        )
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    table = "\n".join(
        [
            BEGIN,
            f"Last run: {date.today()}, PyTorch {torch.__version__}, Python {platform.python_version()}, {processor}.",
            "",
            "| what happens to the run | cases | failures | time |",
            "| --- | --- | --- | --- |",
            *rows,
            END,
        ]
    )
    page = PAGE.read_text()
    PAGE.write_text(re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: table, page, flags=re.DOTALL))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
