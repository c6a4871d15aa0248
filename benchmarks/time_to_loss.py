"""`python -m benchmarks.time_to_loss --nanogpt PATH --text FILE`: how soon characters are predicted as well as nanoGPT does.

nanoGPT trains by its README's recipe for a CPU; `configs/tiny_fast.yaml` trains by the ordinary loop. Each run is a process,
timed from start to end, with evaluation outside the clock on both sides: nanoGPT evaluates one batch twice, ours writes its
last weights and is evaluated afterwards. Both are then measured on the whole last tenth of the text, in rows of 64.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.interleave import Measured, in_turns, ratio
from lmloop.hardware import this_machine
from lmloop.preset.reading import presets_folder

BLOCK = 64
NANOGPT = [
    "--device=cpu",
    "--compile=False",
    "--eval_iters=1",
    "--eval_interval=2000",
    "--always_save_checkpoint=True",
    "--log_interval=500",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
"""The README's line, but for how often it evaluates and prints."""

SCORE = """
import json, sys, torch
sys.path.insert(0, {checkout!r})
from model import GPT, GPTConfig
import numpy as np
kept = torch.load({checkpoint!r}, map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**kept["model_args"])).eval()
model.load_state_dict(kept["model"])
ids = torch.from_numpy(np.fromfile({data!r}, dtype=np.uint16).astype(np.int64))
total = count = 0
with torch.no_grad():
    for start in range(0, len(ids) - 1, 64 * 256):
        piece = ids[start : start + 64 * 256 + 1]
        rows = (len(piece) - 1) // 64
        for x, y in ((piece[: rows * 64].view(-1, 64), piece[1 : rows * 64 + 1].view(-1, 64)),
                     (piece[rows * 64 : -1].view(1, -1), piece[rows * 64 + 1 :].view(1, -1))):
            if x.numel():
                logits, loss = model(x, y)
                total, count = total + loss.item() * y.numel(), count + y.numel()
print(json.dumps({{"loss": total / count, "parameters": sum(p.numel() for p in model.parameters())}}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="the text, for example tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with a seed of its own")
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        peer, ours = NanoGPT(options.nanogpt, options.text, Path(folder)), Ours(options.text, Path(folder))
        measured = in_turns({"nanoGPT": peer.run, "lmloop": ours.run}, options.rounds, console.print)
    _show(measured, options.text.name)
    return 0


class NanoGPT:
    """The peer, in a copy of its checkout, since it reads its data from there."""

    def __init__(self, checkout: Path, text: Path, folder: Path) -> None:
        self.checkout = folder / "nanoGPT"
        shutil.copytree(checkout, self.checkout, ignore=shutil.ignore_patterns(".git"))
        self.data = self.checkout / "data" / "text"
        self.data.mkdir()
        content = text.read_text(encoding="utf-8")
        letters = sorted(set(content))
        number = {letter: index for index, letter in enumerate(letters)}
        ids = np.array([number[letter] for letter in content], dtype=np.uint16)
        cut = int(len(ids) * 0.9)
        ids[:cut].tofile(self.data / "train.bin")
        ids[cut:].tofile(self.data / "val.bin")
        (self.data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(letters), "itos": letters, "stoi": number}))

    def run(self, number: int) -> Mapping[str, float]:
        """One training; its seed is set by the script itself, so rounds differ in nothing but time."""
        out = self.checkout / "out"
        arguments = ["config/train_shakespeare_char.py", *NANOGPT, "--dataset=text", f"--out_dir={out}"]
        started = time.perf_counter()
        _quiet([sys.executable, "train.py", *arguments], cwd=self.checkout)
        seconds = time.perf_counter() - started
        script = SCORE.format(checkout=str(self.checkout), checkpoint=str(out / "ckpt.pt"), data=str(self.data / "val.bin"))
        answer = json.loads(_quiet([sys.executable, "-c", script]).splitlines()[-1])
        return {"seconds": seconds, **answer}


class Ours:
    """The preset, each round with a seed of its own and in a folder of its own."""

    def __init__(self, text: Path, folder: Path) -> None:
        self.text, self.folder = text, folder

    def run(self, number: int) -> Mapping[str, float]:
        run = self.folder / f"run-{number}"
        preset = {
            "extends": str(presets_folder().resolve() / "tiny_fast.yaml"),
            "name": "time_to_loss",
            "output_dir": str(run),
            "data": {"sources": [{"type": "files", "path": str(self.text.resolve())}]},
            "train": {"seed": number},
        }
        path = self.folder / f"preset-{number}.json"
        path.write_text(json.dumps(preset))
        started = time.perf_counter()
        _quiet([sys.executable, "-m", "lmloop.cli", "train", str(path), "--json"])
        seconds = time.perf_counter() - started
        scored = _quiet([sys.executable, "-m", "lmloop.cli", "evaluate", str(run), "--checkpoint", "newest", "--json"])
        answer = json.loads(scored)
        parts = json.loads((run / "run.json").read_text())["parameters"]
        return {"seconds": seconds, "loss": answer["cross_entropy"], "parameters": parts["total"]}


def _quiet(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


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
