"""`make bench`: every comparison that can be made here, one after another.

Nothing is fetched. What a comparison needs is named: a peer's checkout or Python, a text. What is missing is said, and the
rest is measured. Each is a program of its own, with options of its own: `python -m benchmarks.NAME --help`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.arguments import existing

GIVEN = {
    "nanogpt": "a checkout of karpathy/nanoGPT",
    "text": "a text of a megabyte, such as tinyshakespeare.txt",
    "chats": "JSON lines with question and answer, such as GSM8K's",
    "trl_python": "a Python that has TRL and peft",
}
"""What people name, here as --options and to `make bench` in capitals."""


@dataclass(frozen=True)
class Comparison:
    """A program of this folder with arguments, what of GIVEN it needs, and whether it repeats itself in `--rounds`.

    cuda: it is made on a GPU; all others are made on the CPU.
    """

    program: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    rounds: bool = True
    cuda: bool = False


COMPARISONS = {
    "presets": Comparison("presets", rounds=False),
    "memory": Comparison("memory", rounds=False),
    "generation": Comparison("generation"),
    "overhead": Comparison("overhead", ("text",)),
    "training_speed": Comparison("training_speed", ("nanogpt", "text")),
    "time_to_loss": Comparison("time_to_loss", ("nanogpt", "text")),
    "finetuning": Comparison("finetuning", ("trl_python", "chats")),
    "forecast": Comparison("forecast", ("text", "chats")),
    "gpu_speed": Comparison("gpu", ("nanogpt", "text"), cuda=True),
    "gpu_time_to_loss": Comparison("time_to_loss", ("nanogpt", "text"), ("--device", "cuda"), cuda=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every comparison that can be made here.")
    for name, what in GIVEN.items():
        parser.add_argument(_option(name), type=existing, help=what)
    parser.add_argument("--rounds", help="of each comparison (default: its own)")
    parser.add_argument("--only", default=",".join(COMPARISONS), help=f"names, with commas: {', '.join(COMPARISONS)}")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in COMPARISONS]:
        parser.error(f"--only {unknown[0]}: not one of {', '.join(COMPARISONS)}")
    failed = []
    for name in names:
        comparison = COMPARISONS[name]
        missing = [need for need in comparison.needs if getattr(options, need) is None]
        print(f"\n== {name}", flush=True)
        if comparison.cuda and not torch.cuda.is_available():
            print("left out, it needs a CUDA device", flush=True)
        elif missing:
            print(f"left out, it needs {'; '.join(f'{need.upper()}, {GIVEN[need]}' for need in missing)}", flush=True)
        else:
            given = [part for need in comparison.needs for part in (_option(need), str(getattr(options, need)))]
            rounds = ["--rounds", options.rounds] if options.rounds and comparison.rounds else []
            command = [sys.executable, "-m", f"benchmarks.{comparison.program}", *comparison.arguments, *given, *rounds]
            hidden = {} if comparison.cuda else {"CUDA_VISIBLE_DEVICES": ""}
            if subprocess.run(command, env={**os.environ, **hidden}).returncode:
                failed.append(name)
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
