"""`python -m benchmarks.presets`: the speed of a training step on this machine, for each shipped preset."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from lmloop.preset.reading import list_presets, presets_folder

REPEATS = 3

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
"""A base that is not here is not fetched."""


def main() -> int:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("preset", "parameters", "precision", "tokens/s (median)", "from", "to", "memory"):
        table.add_column(column)
    console = Console()
    machine = ""
    for path, _ in list_presets(presets_folder()):
        # A process each: memory is that of the process.
        arguments = [sys.executable, "-m", "lmloop.cli", "plan", str(path), "--json"]
        answers = [json.loads(subprocess.run(arguments, stdout=subprocess.PIPE, env=OFFLINE).stdout) for _ in range(REPEATS)]
        plans = [answer for answer in answers if "error" not in answer]
        if not plans:
            table.add_row(path.stem, "", "", "cannot be planned here: see above")
            continue
        machine = plans[0]["machine"]
        speeds = sorted(plan["tokens_per_s"] for plan in plans)
        table.add_row(
            path.stem,
            f"{plans[0]['parameters']:,}",
            plans[0]["precision"],
            f"{speeds[len(speeds) // 2]:,.0f}",
            f"{speeds[0]:,.0f}",
            f"{speeds[-1]:,.0f}",
            f"{max(plan['memory_bytes'] for plan in plans) / 2**20:,.0f} MB",
        )
    console.print(machine)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
