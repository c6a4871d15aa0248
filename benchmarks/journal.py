"""`python -m benchmarks.journal --text FILE`: whether it helps a model to keep a journal of its training and to read it.

For each seed the same model is trained on the same text for as many epochs: without a journal, with one, and with one in
which an excerpt of the training text, as long as the reflection, stands in the place of each reflection. The epochs of the
latter two are longer by what the journal holds, so the last is the control: it tells what the model wrote from there being
more to train. The loss is that on the held-out end of the text.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import existing
from benchmarks.paired import halves, interval, loss, run
from lmloop.training.journal_file import parse
from lmloop.training.writing import Stop, Writer

TRAIN_CHARACTERS, HELD_OUT_CHARACTERS = 100_000, 30_000
EPOCHS = 5
SIDES = WITHOUT, WITH, CONTROL = "without", "with a journal", "with excerpts"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=existing, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    console = Console(stderr=True)
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    kinds: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, held_out = halves(options.text.read_text(encoding="utf-8"), TRAIN_CHARACTERS, HELD_OUT_CHARACTERS)
        (folder / "text.txt").write_text(text)
        (folder / "held-out.txt").write_text(held_out)
        for seed in range(options.seeds):
            console.print(f"seed {seed + 1} of {options.seeds}")
            for number, side in enumerate(SIDES):
                label = f"side-{number}-{seed}"
                journal = None if side == WITHOUT else _JOURNAL
                with _excerpts(text, seed) if side == CONTROL else nullcontext():
                    run_dir = run(folder, label, _preset(folder, label, seed, options.epochs, journal))
                losses[side].append(loss(run_dir, folder / "held-out.txt"))
                if side == WITH:
                    kinds += [part.kind for part in parse((run_dir / "journal.md").read_text(encoding="utf-8"))]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("held-out loss, nats per token", "mean", "from", "to"):
        table.add_column(column)
    for side, values in losses.items():
        table.add_row(side, *(f"{value:.4f}" for value in (statistics.fmean(values), min(values), max(values))))
    show = Console()
    show.print(table)
    for one, other in ((WITH, WITHOUT), (CONTROL, WITHOUT), (WITH, CONTROL)):
        differences = [a - b for a, b in zip(losses[one], losses[other], strict=True)]
        show.print(f"{one} less {other}, {options.seeds} paired seeds (95 %): {interval(differences)}")
    entries, dropped = kinds.count("entry"), kinds.count("dropped")
    show.print(f"{entries} entries were written and {dropped} left out as degenerate or repeated")
    return 0


@contextmanager
def _excerpts(text: str, seed: int) -> Iterator[None]:
    """Inside, a reflection is an excerpt of the training text, as long as what the model wrote."""
    chance, write = random.Random(seed), Writer.reflection

    def excerpt(self: Writer, prompt: str, tokens: int, number: int, should_stop: Stop) -> str | None:
        written = write(self, prompt, tokens, number, should_stop)
        start = chance.randrange(len(text) - 2_000)
        return written and text[start : start + len(written)]

    Writer.reflection = excerpt
    try:
        yield
    finally:
        Writer.reflection = write


_JOURNAL = {
    "reflection_tokens": 100,
    "prompt": {"context": "Epoch {epoch}, loss {loss}.", "observation": "", "intention": "", "values": "What I learn:"},
}


def _preset(folder: Path, label: str, seed: int, epochs: int, journal: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "output_dir": str(folder / label),
        "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 128},
        "tokenizer": {"type": "bpe", "vocab_size": 512},
        "data": {
            "sources": [{"type": "files", "path": str(folder / "text.txt"), "chunk_size": 4_000}],
            "mix_strategy": "sequential",
            "split": {"validation": 0.05},
        },
        "journal": journal,
        "train": {
            "epochs": epochs,
            "per_gpu_batch_size": 8,
            "threads": 1,
            "precision": "fp32",
            "learning_rate": 2e-3,
            "seed": seed,
            "eval_every_steps": 100,
            "eval_tokens": 5_000,
            "sample_every_steps": 0,
            "log_every_steps": 100,
            "save_every_minutes": 60.0,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
