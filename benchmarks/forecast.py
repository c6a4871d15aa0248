"""`python -m benchmarks.forecast --text FILE --chats FILE [PRESET ...]`: what `lmloop plan` says beside what the run takes.

Default: every shipped preset that this machine can train: those on your own files get a part of the text (as files, as a
PDF), those on your own chats some of the conversations (JSON lines with question and answer) and a base of 12 M random
weights. A preset that would take long is cut to fewer updates, which stands behind its name; nothing else of it is changed,
but that 00_best_general reads `python_stdlib` alone, which needs no hub. What `plan` says and the run that follows are two
processes; of the latter the whole counts, from start to end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.arguments import existing, rounds
from benchmarks.finetuning import make_base
from lmloop.hardware import this_machine
from lmloop.preset.reading import find_preset
from tests.pdfs import write_book

CUTS: dict[str, dict[str, Any]] = {
    "tiny_fast": {},
    "tiny_gpt": {"train": {"max_steps": 400}},
    "00_best_general": {"train": {"max_steps": 12}, "data": {"sources": ["python_stdlib"]}},
    "gpu_fast": {"train": {"max_steps": 20}},
    "my_files": {},
    "pdf_library": {},
    "meta_journal_small": {},
    "small_full_sft": {},
    "small_lora": {},
    "small_qlora": {},
}
"""The presets, with what is changed in them."""

FILE_CHARACTERS, FILES, CHATS = 15_000, 10, 80
"""Of the text as much is in one file, and there are so many; conversations."""

PARTS = ("start", "compile", "train", "evaluate", "sample", "save")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(CUTS), help=f"names (default: {' '.join(CUTS)})")
    parser.add_argument("--text", type=existing, required=True, help="a text of half a megabyte or more")
    parser.add_argument("--chats", type=existing, required=True, help="JSON lines with question and answer")
    parser.add_argument("--threads", type=int, help="of the CPU (default: one for each core); on a busy machine, take 1")
    parser.add_argument("--rounds", type=rounds, default=1, help="of plan and run, for each preset")
    options = parser.parse_args()
    console = Console(stderr=True)
    whole, parts = Table(box=None, padding=(0, 2, 0, 0)), Table(box=None, padding=(0, 2, 0, 0))
    for column in ("preset", "seconds forecast", "taken", "ratio", "memory forecast", "taken", "ratio"):
        whole.add_column(column)
    for column in ("seconds, forecast / taken", *PARTS):
        parts.add_column(column)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        lay_out(here, options.text.read_text(encoding="utf-8"), options.chats)
        for preset in options.presets:
            pairs = []
            for number in range(options.rounds):
                console.print(f"{preset}, round {number + 1} of {options.rounds}")
                pairs.append(pair(preset, here, number, options.threads))
                console.print(f"  {pairs[-1][0]['seconds']:.1f} s forecast, {pairs[-1][1].seconds:.1f} s taken")
            add_rows(whole, parts, preset, pairs)
    console = Console()
    console.print(this_machine().describe())
    console.print(whole)
    console.print(parts)
    return 0


def lay_out(here: Path, text: str, chats: Path) -> None:
    """The files that presets name, in the folder that they are run in."""
    (here / "my_files").mkdir()
    (here / "my_pdfs").mkdir()
    for number in range(FILES):
        piece = text[number * FILE_CHARACTERS : (number + 1) * FILE_CHARACTERS]
        (here / "my_files" / f"{number}.txt").write_text(piece, encoding="utf-8")
        write_book(here / "my_pdfs" / f"{number}.pdf", [part for part in piece.split("\n\n") if part.strip()])
    records = [json.loads(line) for line in chats.read_text(encoding="utf-8").splitlines()]
    make_base(here / "my_base", [(record["question"], record["answer"]) for record in records[:2_000]])
    with (here / "my_chats.jsonl").open("w") as file:
        for record in records[:CHATS]:
            said = [("user", record["question"]), ("assistant", record["answer"])]
            file.write(json.dumps({"messages": [{"role": role, "content": content} for role, content in said]}) + "\n")


def pair(preset: str, here: Path, number: int, threads: int | None) -> tuple[dict[str, Any], ours.Run]:
    """The plan of a preset, and its run."""
    cuts = CUTS.get(preset, {})
    train = {**cuts.get("train", {}), **({"threads": threads} if threads else {})}
    changed = {"extends": str(find_preset(preset).resolve()), **cuts, "train": train}
    folder = here / f"{preset}-{number}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(here / "cache")}  # what is known of earlier runs is not used
    known = ours.plan(changed, folder, cwd=here, environment=environment)
    return known, ours.train(changed, folder, cwd=here, environment=environment)


def add_rows(whole: Table, parts: Table, preset: str, pairs: Sequence[tuple[Mapping[str, Any], ours.Run]]) -> None:
    """The medians of both sides; of ratios the least and the greatest too."""
    cut = CUTS.get(preset, {}).get("train", {}).get("max_steps")
    name = f"{preset}, {cut} updates" if cut else preset
    seconds = [(known["seconds"], run.seconds) for known, run in pairs]
    memory = [(known["memory_bytes"] / 2**20, run.memory_bytes / 2**20) for known, run in pairs]
    cells = [name]
    for figures, form in ((seconds, "{:.1f}"), (memory, "{:,.0f} MB")):
        forecast, taken = (statistics.median(side) for side in zip(*figures, strict=True))
        ratios = sorted(a / b for a, b in figures)
        spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
        cells += [form.format(forecast), form.format(taken), f"{statistics.median(ratios):.2f}{spread}"]
    whole.add_row(*cells)
    shown = []
    for part in PARTS:
        forecast = statistics.median(known["time_by_part"][part] for known, _ in pairs)
        taken = statistics.median(taken_by_part(run)[part] for _, run in pairs)
        shown.append(f"{forecast:.1f} / {taken:.1f}" if max(forecast, taken) >= 0.05 else "")
    parts.add_row(name, *shown)


def taken_by_part(run: ours.Run) -> dict[str, float]:
    """The seconds of a run as its record has them. What stands there of no part is its start, and its end; compiling is a
    part of training."""
    phases = run.record["sessions"][-1]["phases"]
    known = {
        "train": phases["train"] + phases["data"],
        "evaluate": phases["evaluate"],
        "sample": phases["sample"],
        "save": phases["save"],
    }
    return {**known, "compile": 0.0, "start": run.seconds - sum(known.values())}


if __name__ == "__main__":
    sys.exit(main())
