"""`make torture`: every scenario at full size; the result goes into docs/reliability.md.

`--only NAME ... --small` is what the tests run, in processes that have computed nothing before they fork.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from tests.torture.scenarios import SCENARIOS, Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- result of `make torture` -->", "<!-- end of the result -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--only", choices=SCENARIOS, nargs="+", help="some scenarios, which leaves the page as it is")
    parser.add_argument("--small", action="store_true", help="few cases")
    options = parser.parse_args()
    rows, failed = [], False
    for scenario in [SCENARIOS[name] for name in options.only or SCENARIOS]:
        row, whole = _run(scenario.title, scenario.small if options.small else scenario.full)
        rows.append(row)
        failed |= not whole
    if not (options.only or options.small):
        _write(rows)
    return int(failed)


def _run(title: str, scenario: Callable[[Path], Result]) -> tuple[str, bool]:
    """A row of the table, and whether nothing went wrong."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = scenario(Path(folder))
    seconds = time.perf_counter() - started
    notes = ", ".join(f"{count} {what}" for what, count in result.notes.items())
    print(f"{title}: {result.cases} cases, {len(result.failures)} failures, {seconds:.0f} s {notes}", flush=True)
    for failure in result.failures[:20]:
        print(f"    {failure}", flush=True)
    cases = f"{result.cases} ({notes})" if notes else f"{result.cases}"
    return f"| {title} | {cases} | {len(result.failures)} | {seconds:.0f} s |", bool(result.cases and not result.failures)


def _write(rows: list[str]) -> None:
    """Put the table into the page."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
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


if __name__ == "__main__":
    sys.exit(main())
