"""`python -m benchmarks.gpu --nanogpt PATH --text FILE`: on a CUDA device, tokens/s beside nanoGPT, compiled on both sides.

Two shapes: nanoGPT's recipe for Shakespeare's characters on a GPU (10.65 M parameters, 64 rows of 256), trained by both
programs in turns, and its 124 M shape (12 layers, 768 wide, rows of 1,024 tokens) with random tokens: its `bench.py` beside
`lmloop plan`, which trains on the preset's worst batch. MFU counts 6 N + 12 L D T operations a token against `--peak`.
It asks nothing of any registry.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.arguments import existing, rounds
from benchmarks.interleave import in_turns, ratio
from benchmarks.nanogpt import NanoGPT, quiet
from lmloop.hardware import this_machine

LARGE = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "seq_length": 1_024}
SMALL = {"hidden_size": 384, "num_layers": 6, "num_heads": 6, "seq_length": 256}
ROWS = {"124 M": 12, "10.65 M": 64}
WARM_UP = 50
"""Steps at the beginning that do not count: both sides compile in them."""

Round = Callable[[int], Mapping[str, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=existing, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--text", type=existing, required=True, help="tinyshakespeare.txt")
    parser.add_argument("--rounds", type=rounds, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of a run of the small shape")
    parser.add_argument("--peak", type=float, default=989e12, help="dense bf16 operations a second (default: an H100's)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here: nothing is measured")
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = NanoGPT(options.nanogpt, options.text, folder, device="cuda")
        large: dict[str, Round] = {"lmloop": lambda number: _plan(folder), "nanoGPT": lambda number: _bench(peer)}
        small: dict[str, Round] = {
            "lmloop": lambda number: _train(folder / f"run-{number}", options.text, options.steps),
            "nanoGPT": lambda number: _recipe(peer, options.steps),
        }
        measured = {
            "124 M": in_turns(large, options.rounds, console.print),
            "10.65 M": in_turns(small, options.rounds, console.print),
        }
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("shape", "", "tokens/s (median)", "from", "to", "MFU"):
        table.add_column(column)
    for size, shape in (("124 M", LARGE), ("10.65 M", SMALL)):
        parameters = 124e6 if size == "124 M" else 10.65e6
        operations = 6 * parameters + 12 * shape["num_layers"] * shape["hidden_size"] * shape["seq_length"]
        for name, side in measured[size].items():
            speed, (least, most) = side.median("tokens_per_s"), side.spread("tokens_per_s")
            mfu = f"{speed * operations / options.peak:.1%}"
            table.add_row(size, name, f"{speed:,.0f}", f"{least:,.0f}", f"{most:,.0f}", mfu)
    output = Console()
    output.print(f"{this_machine().describe()}, PyTorch {torch.__version__}")
    output.print(table)
    for size, sides in measured.items():
        output.print(
            f"{size}: lmloop over nanoGPT, round by round: {ratio(sides['nanoGPT'], sides['lmloop'], 'tokens_per_s')}"
        )
    return 0


def _preset(size: str, model: dict[str, int], **sections: Any) -> dict[str, Any]:
    train = {"per_gpu_batch_size": ROWS[size], **sections.pop("train")}
    return {"model": {"architecture": "gpt2", "feed_forward": "gelu", "norm_eps": 1e-5, **model}, "train": train, **sections}


def _plan(folder: Path) -> Mapping[str, float]:
    preset = _preset(
        "124 M",
        LARGE,
        tokenizer={"type": "bpe", "vocab_size": 50_304},
        data={"sources": ["python_stdlib"]},
        train={"max_steps": 1_000},
    )
    return {"tokens_per_s": ours.plan(preset, folder / "large")["tokens_per_s"]}


def _bench(peer: NanoGPT) -> Mapping[str, float]:
    printed = quiet([sys.executable, "bench.py", "--real_data=False", "--device=cuda"], cwd=peer.checkout)
    found = re.search(r"time per iteration: ([0-9.]+)ms", printed)
    assert found is not None, printed[-500:]
    return {"tokens_per_s": ROWS["124 M"] * LARGE["seq_length"] * 1e3 / float(found.group(1))}


def _train(folder: Path, text: Path, steps: int) -> Mapping[str, float]:
    preset = _preset(
        "10.65 M",
        {**SMALL},
        tokenizer={"type": "char"},
        data={"sources": [{"type": "files", "path": str(text.resolve())}]},
        train={"max_steps": steps, "log_every_steps": 1, "eval_tokens": 2_000, "sample_every_steps": 0},
    )
    return {"tokens_per_s": statistics.median(ours.train(preset, folder).speeds[WARM_UP:])}


def _recipe(peer: NanoGPT, steps: int) -> Mapping[str, float]:
    schedule = [
        f"--max_iters={steps}",
        "--eval_iters=1",
        f"--eval_interval={10 * steps}",
        "--dropout=0.0",
        "--log_interval=1",
    ]
    step_ms = peer.step_ms(peer.train(schedule))
    return {"tokens_per_s": ROWS["10.65 M"] * SMALL["seq_length"] * 1e3 / statistics.median(step_ms[WARM_UP:])}


if __name__ == "__main__":
    sys.exit(main())
