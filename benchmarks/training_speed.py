"""`python -m benchmarks.training_speed --nanogpt PATH --text FILE`: tokens/s of training, beside nanoGPT's.

Its "baby GPT" (6 layers, 6 heads, 384 wide, rows of 256 characters, AdamW) in our `gpt2` shape through the ordinary loop,
in turns with nanoGPT as it is (fp32 on a CPU) and with one line patched to bf16 autocast. Each run is a process; what is
compared is its median step, everything included that happens between two steps. The share of the peak counts
6 N + 12 L D T operations a token (PaLM, arXiv 2204.02311, appendix B) against the best product of 2,048² matrices in bf16.
After as many updates of as many characters, all are measured on the whole last tenth of the text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.arguments import existing, rounds
from benchmarks.interleave import Measured, in_turns, ratio
from benchmarks.nanogpt import NanoGPT
from lmloop.hardware import this_machine, use_machine

LAYERS, HEADS, WIDTH, BLOCK, BATCH = 6, 6, 384, 256, 12
WARM_UP = 5
"""Steps at the beginning that do not count."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=existing, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--text", type=existing, required=True, help="the text, for example tinyshakespeare.txt")
    parser.add_argument("--rounds", type=rounds, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of one run")
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, validation = ours.nine_tenths(options.text, folder)
        plain, patched = (NanoGPT(options.nanogpt, options.text, folder, bf16=bf16) for bf16 in (False, True))
        sides = {
            f"lmloop {kind}": lambda number, kind=kind: _ours(
                train, validation, folder / f"{kind}-{number}", options.steps, kind
            )
            for kind in ("bf16", "fp32")
        } | {
            "nanoGPT fp32": lambda number: _theirs(plain, options.steps),
            "nanoGPT patched to bf16": lambda number: _theirs(patched, options.steps),
        }
        measured = in_turns(sides, options.rounds, console.print)
    _show(measured)
    return 0


def _ours(text: Path, validation: Path, folder: Path, steps: int, precision: str) -> Mapping[str, float]:
    preset = {
        "model": {
            "architecture": "gpt2",
            "feed_forward": "gelu",
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "seq_length": BLOCK,
            "norm_eps": 1e-5,
        },
        "tokenizer": {"type": "char"},
        "data": {
            "sources": [{"type": "files", "path": str(text)}],
            "validation": [{"type": "files", "path": str(validation)}],
        },
        "train": {
            "max_steps": steps,
            "per_gpu_batch_size": BATCH,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "lr_schedule": "constant",
            "beta2": 0.99,
            "precision": precision,
            "log_every_steps": 1,
            "eval_tokens": 2_000,
            "sample_every_steps": 0,
        },
    }
    run = ours.train(preset, folder)
    return {
        "tokens_per_s": statistics.median(run.speeds[WARM_UP:]),
        "loss": ours.evaluate(run.folder, validation)["cross_entropy"],
        "parameters": run.record["parameters"]["total"],
        "peak": _peak(),
    }


def _theirs(peer: NanoGPT, steps: int) -> Mapping[str, float]:
    shape = [f"--n_layer={LAYERS}", f"--n_head={HEADS}", f"--n_embd={WIDTH}", f"--block_size={BLOCK}", "--dropout=0.0"]
    schedule = [f"--max_iters={steps}", "--decay_lr=False", "--eval_iters=1", f"--eval_interval={steps}"]
    schedule += ["--always_save_checkpoint=True"]
    printed = peer.train([*shape, *schedule, f"--batch_size={BATCH}", "--bias=True", "--log_interval=1"])
    step_ms = peer.step_ms(printed)
    return {
        "tokens_per_s": BATCH * BLOCK * 1e3 / statistics.median(step_ms[WARM_UP:]),
        "loss": peer.score()["loss"],
        "peak": _peak(),
    }


def _peak() -> float:
    """Operations a second of a product of bf16 matrices, the best of 20."""
    use_machine(this_machine(), None)
    a = torch.randn(2_048, 2_048, dtype=torch.bfloat16)
    best_s = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, a)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * 2_048**3 / best_s


def _show(measured: Mapping[str, Measured]) -> None:
    console = Console()
    peak = max(side.spread("peak")[1] for side in measured.values())
    parameters = measured["lmloop bf16"].median("parameters")
    operations = 6 * parameters + 12 * LAYERS * WIDTH * BLOCK
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "tokens/s (median)", "from", "to", "share of the peak", "loss on the last tenth"):
        table.add_column(column)
    for name, side in measured.items():
        speed = side.median("tokens_per_s")
        least, most = side.spread("tokens_per_s")
        share = f"{operations * speed / peak:.0%}"
        table.add_row(name, f"{speed:,.0f}", f"{least:,.0f}", f"{most:,.0f}", share, f"{side.median('loss'):.3f}")
    console.print(this_machine().describe())
    console.print(f"{parameters:,.0f} parameters; peak of bf16 products: {peak / 1e9:,.0f} GFLOP/s")
    console.print(table)
    for peer in ("nanoGPT fp32", "nanoGPT patched to bf16"):
        times = ratio(measured[peer], measured["lmloop bf16"], "tokens_per_s")
        console.print(f"lmloop bf16 over {peer}, round by round: {times}")


if __name__ == "__main__":
    sys.exit(main())
