"""`python -m benchmarks.replay --old FILE --new FILE`: what a model forgets of old data when it is trained on new, and with
replay.

For each seed a small model is trained on the old text; from there on, in two copies of its folder, on the new text alone and
on the new text with a share of the old one replayed, for as many updates. Losses are on held-out ends of both texts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import existing
from benchmarks.paired import halves, interval, loss, run

TRAIN_CHARACTERS, HELD_OUT_CHARACTERS = 300_000, 40_000
STEPS = 200
SIDES = ("before", "new alone", "with replay")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=existing, required=True, help="the text that is learned first")
    parser.add_argument("--new", type=existing, required=True, help="the text that is learned then")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.2, help="of the rows, that are old")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of each training")
    options = parser.parse_args()
    console = Console(stderr=True)
    losses: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, path in (("old", options.old), ("new", options.new)):
            text, held_out = halves(path.read_text(encoding="utf-8"), TRAIN_CHARACTERS, HELD_OUT_CHARACTERS)
            (folder / f"{side}.txt").write_text(text)
            (folder / f"{side}-held-out.txt").write_text(held_out)
        for seed in range(options.seeds):
            console.print(f"seed {seed + 1} of {options.seeds}")
            runs = _train(folder, seed, options.share, options.steps)
            for side in losses:
                held_out = folder / f"{side}-held-out.txt"
                losses[side].append({what: loss(run_dir, held_out) for what, run_dir in runs.items()})
    _show(losses, options.share)
    return 0


def _train(folder: Path, seed: int, share: float, steps: int) -> dict[str, Path]:
    """The three models of one seed."""
    old, new = ({"type": "files", "path": str(folder / f"{side}.txt"), "chunk_size": 4_000} for side in ("old", "new"))
    before = run(folder, f"old-{seed}", preset(folder / f"old-{seed}", [old], seed, steps))
    runs = {"before": before}
    for what, replay in (("new alone", None), ("with replay", {"sources": [old], "share": share})):
        there = folder / f"{what.replace(' ', '-')}-{seed}"
        shutil.copytree(before, there)
        # The tokenizer is the one of the old text: the folder has it.
        runs[what] = run(folder, there.name, preset(there, [new], seed, steps, replay))
    return runs


def preset(there: Path, sources: list[Any], seed: int, steps: int, replay: dict[str, Any] | None = None) -> dict[str, Any]:
    """A model of about 0.15 million parameters, trained for `steps` updates of 1,024 tokens."""
    return {
        "output_dir": str(there),
        "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 128},
        "tokenizer": {"type": "bpe", "vocab_size": 512},
        "data": {"sources": sources, "replay": replay, "split": {"validation": 0.02}},
        "train": {
            "max_steps": steps,
            "per_gpu_batch_size": 8,
            "threads": 1,
            "precision": "fp32",
            "learning_rate": 2e-3,
            "seed": seed,
            "eval_every_steps": 1_000,
            "sample_every_steps": 0,
            "log_every_steps": 100,
            "save_every_minutes": 60.0,
        },
    }


def _show(losses: dict[str, list[dict[str, float]]], share: float) -> None:
    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("held-out loss, nats per token", *SIDES, "with replay less new alone (95 %)"):
        table.add_column(column)
    for side, seeds in losses.items():
        means = [f"{statistics.fmean(one[what] for one in seeds):.4f}" for what in SIDES]
        table.add_row(side, *means, interval([one["with replay"] - one["new alone"] for one in seeds]))
    console.print(table)
    forgotten, kept = (
        statistics.fmean(one[what] - one["before"] for one in losses["old"]) for what in ("new alone", "with replay")
    )
    console.print(
        f"{len(losses['old'])} seeds, share {share:g}: on the old text the loss rises by {forgotten:.4f} without replay and "
        f"by {kept:.4f} with it"
    )


if __name__ == "__main__":
    sys.exit(main())
