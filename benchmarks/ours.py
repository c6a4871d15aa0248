"""Our side of the benchmarks: the ordinary command on a preset, in a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

COMMAND = ("-m", "lmloop.cli")
"""What Python runs."""

Preset = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run. seconds: of its process, from start to end. memory_bytes: its peak, on CUDA that of the device.
    metrics: the lines of metrics.jsonl. record: run.json. printed: what the process wrote to the standard output."""

    folder: Path
    seconds: float
    memory_bytes: int
    metrics: list[dict[str, Any]]
    record: dict[str, Any]
    printed: str

    @property
    def speeds(self) -> list[float]:
        """Tokens/s of each line that has them."""
        return [line["tokens_per_s"] for line in self.metrics if line.get("tokens_per_s")]


def train(
    preset: Preset,
    folder: Path,
    *,
    cwd: Path | None = None,
    program: Sequence[str] = COMMAND,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Train `preset` into `folder`; its file lies beside it. `cwd`: what paths in it are relative to. Ends the program, with
    the run's last words, where it fails."""
    path = _written(preset, folder)
    started = time.perf_counter()
    printed, peak_bytes = _done([*program, "train", str(path), "--json"], cwd, environment)
    seconds = time.perf_counter() - started
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if torch.cuda.is_available():
        peak_bytes = max(line["memory_bytes"] for line in metrics)
    return Run(folder, seconds, peak_bytes, metrics, json.loads((folder / "run.json").read_text()), printed)


def plan(
    preset: Preset, folder: Path, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `lmloop plan --json` says of `preset`, if it is to be trained into `folder`."""
    return json.loads(_done([*COMMAND, "plan", str(_written(preset, folder)), "--json"], cwd, environment)[0])


def evaluate(folder: Path, data: Path) -> dict[str, Any]:
    """What `lmloop evaluate --json` says of a run's newest weights on the whole of a file."""
    arguments = ["evaluate", str(folder), "--data", str(data), "--checkpoint", "newest", "--json"]
    return json.loads(_done([*COMMAND, *arguments], None, None)[0])


def nine_tenths(text: Path, folder: Path) -> tuple[Path, Path]:
    """A text cut where nanoGPT cuts it: files with what is trained and with the last tenth."""
    content = text.read_text(encoding="utf-8")
    cut = int(len(content) * 0.9)
    train, validation = folder / "train.txt", folder / "validation.txt"
    train.write_text(content[:cut], encoding="utf-8")
    validation.write_text(content[cut:], encoding="utf-8")
    return train, validation


def _written(preset: Preset, folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.json")
    path.write_text(json.dumps({"name": folder.name, **preset, "output_dir": str(folder)}))
    return path


def _done(arguments: Sequence[str], cwd: Path | None, environment: Mapping[str, str] | None) -> tuple[str, int]:
    """What Python with these arguments printed, and the peak of its memory in bytes."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, stdout=printed, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)  # of this one process; `resource` knows the largest of all
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        said.seek(0)
        out = printed.read()
        if process.returncode:
            sys.exit(f"{' '.join(arguments)[:500]} failed:\n{out[-2000:]}\n{said.read()[-2000:]}")
    return out, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
