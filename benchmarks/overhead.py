"""`python -m benchmarks.overhead --text FILE`: what a run does besides arithmetic: the loop, checkpoints, waiting for data.

Each run is a process that trains by the ordinary loop, where forward and backward, clipping and the optimizer's step are
timed from outside. What is left of a step is the loop's own; a checkpoint is set against the five minutes after which
the next one is due. The last run reads the same text as Parquet from a hub on this machine, through the real client.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.arguments import existing, rounds
from benchmarks.interleave import Measured, in_turns
from lmloop.hardware import this_machine
from tests.data.hub_child import child_environment
from tests.data.hub_server import HubServer

TIMED = """
import json, sys, time
from collections import Counter
import lmloop.training.gradients, lmloop.training.parallel, lmloop.training.snapshot, torch
from lmloop.cli import main
spent, calls = Counter(), Counter()
def timed(key, owner, name):
    inner = getattr(owner, name)
    def outer(*args, **named):
        started = time.perf_counter()
        try:
            return inner(*args, **named)
        finally:
            spent[key] += time.perf_counter() - started
            calls[key] += 1
    setattr(owner, name, outer)
timed("arithmetic", lmloop.training.gradients.Gradients, "of")
timed("arithmetic", lmloop.training.parallel.Alone, "clip")
timed("arithmetic", torch.optim.AdamW, "step")
timed("save", lmloop.training.snapshot.Snapshots, "save")
status = main(sys.argv[1:])
print(json.dumps({"arithmetic": spent["arithmetic"], "save": spent["save"] / calls["save"]}))
sys.exit(status)
"""

SAVE_EVERY_S = 300.0
"""The default of `train.save_every_minutes`."""

SHAPES: dict[str, dict[str, Any]] = {
    "0.8 M": {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "seq_length": 256},
    "11 M": {"hidden_size": 384, "num_layers": 6, "num_heads": 6, "seq_length": 256},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=existing, required=True, help="a text of a megabyte or more")
    parser.add_argument("--rounds", type=rounds, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name, HubServer() as hub:
        folder = Path(name)
        hub.add("benchmark/text", {"data/train-00000.parquet": _parquet(options.text)})
        hub_environment = child_environment(hub.url, folder / "home")
        local = {"type": "files", "path": str(options.text.resolve())}
        remote = {"type": "hub", "dataset": "benchmark/text"}
        sides = {f"{size}, a local file": _side(folder, size, local, options.steps, dict(os.environ)) for size in SHAPES}
        sides["0.8 M, a hub on loopback"] = _side(folder, "0.8 M", remote, options.steps, hub_environment)
        measured = in_turns(sides, options.rounds, console.print)
    _show(measured)
    return 0


def _parquet(text: Path) -> bytes:
    """The text as a data set of 100 lines a row."""
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = ["".join(lines[at : at + 100]) for at in range(0, len(lines), 100)]
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), stream, row_group_size=50)
    return stream.getvalue()


def _side(folder: Path, size: str, source: dict[str, Any], steps: int, environment: dict[str, str]) -> Any:
    def run(number: int) -> Mapping[str, float]:
        name = f"{size}-{source['type']}-{number}".replace(" ", "")
        preset = {
            "model": SHAPES[size],
            "tokenizer": {"type": "char"},
            "data": {"sources": [source]},
            "train": {"max_steps": steps, "per_gpu_batch_size": 12, "eval_tokens": 2_000, "sample_every_steps": 0},
        }
        done = ours.train(preset, folder / name, program=("-c", TIMED), environment=environment)
        timed = json.loads(done.printed.splitlines()[-1])
        phases = done.record["sessions"][-1]["phases"]
        steps_s = phases["train"] + phases["data"]
        return {
            "loop": (phases["train"] - timed["arithmetic"]) / steps_s,
            "data": phases["data"] / steps_s,
            "save": timed["save"] / SAVE_EVERY_S,
        }

    return run


def _show(measured: Mapping[str, Measured]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("share of the time, median (least to greatest)", "the loop itself", "waiting for data", "checkpoints"):
        table.add_column(column)
    for name, side in measured.items():
        cells = []
        for key in ("loop", "data", "save"):
            least, most = side.spread(key)
            cells.append(f"{side.median(key):.2%} ({least:.2%} to {most:.2%})")
        table.add_row(name, *cells)
    console = Console()
    console.print(this_machine().describe())
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
