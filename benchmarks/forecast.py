"""`python -m benchmarks.forecast [PRESET ...]`: what `lmloop plan` says beside what the run then takes, from start to end.

Default: the shipped presets that are trained in minutes on two cores and need nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.nanogpt import quiet
from lmloop.hardware import this_machine
from lmloop.preset.reading import find_preset

DEFAULT = ["tiny_fast", "tiny_gpt"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=DEFAULT, help=f"names or files (default: {' '.join(DEFAULT)})")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("preset", "seconds forecast", "seconds taken", "ratio", "memory forecast", "memory taken", "ratio"):
        table.add_column(column)
    for name in parser.parse_args().presets:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            path = Path(folder) / "preset.json"
            path.write_text(json.dumps({"extends": str(find_preset(name).resolve()), "output_dir": str(run)}))
            plan = json.loads(quiet([sys.executable, "-m", "lmloop.cli", "plan", str(path), "--json"]))
            started = time.perf_counter()
            quiet([sys.executable, "-m", "lmloop.cli", "train", str(path), "--json"])
            seconds = time.perf_counter() - started
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        memory = max(line["memory_bytes"] for line in lines)
        table.add_row(
            name,
            f"{plan['seconds']:.1f}",
            f"{seconds:.1f}",
            f"{plan['seconds'] / seconds:.2f}",
            f"{plan['memory_bytes'] / 2**20:,.0f} MB",
            f"{memory / 2**20:,.0f} MB",
            f"{plan['memory_bytes'] / memory:.2f}",
        )
    console = Console()
    console.print(this_machine().describe())
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
