"""`python -m benchmarks.time_to_loss --nanogpt PATH --text FILE`: how soon characters are predicted as well as nanoGPT does.

nanoGPT trains by its README's recipe for a CPU; `configs/tiny_fast.yaml` trains by the ordinary loop. Each run is a process,
timed from start to end, with evaluation outside the clock on both sides: nanoGPT evaluates one batch twice, ours writes its
last weights and is evaluated afterwards. Both are then measured on the whole last tenth of the text, in rows of the context.

With `--device cuda` it is nanoGPT's recipe for a GPU beside `configs/gpu_fast.yaml`. That recipe is best in its middle, so
it runs once as it is, and then, timed, as long as it took to be best.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.arguments import existing, rounds
from benchmarks.interleave import Measured, in_turns, ratio
from benchmarks.nanogpt import NanoGPT
from lmloop.hardware import this_machine
from lmloop.preset.reading import presets_folder

SELDOM = ["--eval_iters=1", "--always_save_checkpoint=True", "--log_interval=500"]
"""How little nanoGPT evaluates and prints where it is timed."""

CPU_STEPS = 2_000
CPU_RECIPE = [
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    f"--lr_decay_iters={CPU_STEPS}",
    "--dropout=0.0",
]
"""The README's line for a CPU. That for a GPU is the configuration of `NanoGPT.train` itself."""

PRESETS = {"cpu": "tiny_fast", "cuda": "gpu_fast"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=existing, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--text", type=existing, required=True, help="the text, for example tinyshakespeare.txt")
    parser.add_argument("--rounds", type=rounds, default=3, help="rounds, each with a seed of its own")
    parser.add_argument("--device", choices=list(PRESETS), default="cpu", help="which recipe of nanoGPT's (default: cpu)")
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        peer = NanoGPT(options.nanogpt, options.text, Path(folder), device=options.device)
        own = Ours(PRESETS[options.device], options.text, Path(folder))
        recipe, steps = (CPU_RECIPE, CPU_STEPS) if options.device == "cpu" else ([], best_step(peer))
        sides = {"nanoGPT": lambda number: peer_round(peer, recipe, steps), "lmloop": own.run}
        measured = in_turns(sides, options.rounds, console.print)
    _show(measured, options.text.name)
    return 0


def best_step(peer: NanoGPT) -> int:
    """The iteration at which the recipe for a GPU evaluates best; it goes on for 5,000."""
    losses = peer.evaluations(peer.train(["--log_interval=500"]))
    if not losses:
        sys.exit("nanoGPT has printed no evaluation: this is another version of it")
    return min(losses, key=lambda step: losses[step])


def peer_round(peer: NanoGPT, recipe: list[str], steps: int) -> Mapping[str, float]:
    """One training of nanoGPT; its seed is set by the script itself, so rounds differ in nothing but time."""
    started = time.perf_counter()
    peer.train([*recipe, f"--max_iters={steps}", f"--eval_interval={steps}", *SELDOM])
    return {"seconds": time.perf_counter() - started, **peer.score()}


class Ours:
    """The preset, each round with a seed of its own and in a folder of its own."""

    def __init__(self, preset: str, text: Path, folder: Path) -> None:
        self.preset, self.folder = preset, folder
        self.train, self.validation = ours.nine_tenths(text, folder)

    def run(self, number: int) -> Mapping[str, float]:
        preset = {
            "extends": str(presets_folder().resolve() / f"{self.preset}.yaml"),
            "data": {
                "sources": [{"type": "files", "path": str(self.train)}],
                "validation": [{"type": "files", "path": str(self.validation)}],
            },
            "train": {"seed": number, "eval_tokens": 2_000},
        }
        run = ours.train(preset, self.folder / f"run-{number}")
        loss = ours.evaluate(run.folder, self.validation)["cross_entropy"]
        return {"seconds": run.seconds, "loss": loss, "parameters": run.record["parameters"]["total"]}


def _show(measured: Mapping[str, Measured], text: str) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (text, "parameters", "seconds (median)", "from", "to", "loss (mean)", "from", "to"):
        table.add_column(column)
    for name, side in measured.items():
        losses = side.values["loss"]
        table.add_row(
            name,
            f"{side.median('parameters'):,.0f}",
            f"{side.median('seconds'):.1f}",
            *(f"{value:.1f}" for value in side.spread("seconds")),
            f"{math.fsum(losses) / len(losses):.4f}",
            *(f"{value:.4f}" for value in side.spread("loss")),
        )
    console = Console()
    console.print(this_machine().describe())
    console.print(table)
    console.print(
        f"nanoGPT's seconds over ours, round by round: {ratio(measured['lmloop'], measured['nanoGPT'], 'seconds')}"
    )


if __name__ == "__main__":
    sys.exit(main())
