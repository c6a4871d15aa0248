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
from typing import Literal

import torch

from benchmarks.arguments import existing, rounds

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

    device: what it is made on; `any`: on what this machine has.
    """

    program: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    rounds: bool = True
    device: Literal["cpu", "cuda", "any"] = "cpu"


COMPARISONS = {
    "presets": Comparison("presets", rounds=False, device="any"),
    "memory": Comparison("memory", rounds=False, device="any"),
    "generation": Comparison("generation"),
    "overhead": Comparison("overhead", ("text",)),
    "training_speed": Comparison("training_speed", ("nanogpt", "text")),
    "time_to_loss": Comparison("time_to_loss", ("nanogpt", "text")),
    "finetuning": Comparison("finetuning", ("trl_python", "chats")),
    "forecast": Comparison("forecast", ("text", "chats"), device="any"),
    "gpu_speed": Comparison("gpu", ("nanogpt", "text"), device="cuda"),
    "gpu_time_to_loss": Comparison("time_to_loss", ("nanogpt", "text"), ("--device", "cuda"), device="cuda"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every comparison that can be made here.")
    for name, what in GIVEN.items():
        parser.add_argument(_option(name), type=existing, help=what)
    parser.add_argument("--rounds", type=rounds, help="of each comparison (default: its own)")
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
        if comparison.device == "cuda" and not torch.cuda.is_available():
            print("left out, it needs a CUDA device", flush=True)
        elif missing:
            print(f"left out, it needs {'; '.join(f'{need.upper()}, {GIVEN[need]}' for need in missing)}", flush=True)
        else:
            given = [part for need in comparison.needs for part in (_option(need), str(getattr(options, need)))]
            repeated = ["--rounds", str(options.rounds)] if options.rounds and comparison.rounds else []
            command = [sys.executable, "-m", f"benchmarks.{comparison.program}", *comparison.arguments, *given, *repeated]
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if comparison.device == "cpu" else {}
            if subprocess.run(command, env={**os.environ, **hidden}).returncode:
                failed.append(name)
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
