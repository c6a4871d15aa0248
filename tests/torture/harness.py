"""Runs that can be killed: forked from a process that has imported everything and computed nothing.

PyTorch is imported once; a fork takes milliseconds. The parent must never run an operation of PyTorch, since the threads of
its arithmetic do not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  (what the first optimizer of a process imports: a second and a half)

import lmloop.generation.engine
import lmloop.models.build
import lmloop.run
from lmloop.preset.reading import load_preset

TIMING_KEYS = {"tokens_per_s", "feed_wait", "elapsed_s", "memory_bytes"}
"""Fields of a metrics line that no resume can repeat."""

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "mix",
    "potions",
    "by",
    "candle",
    "light",
]


def write_corpus(folder: Path, *, files: int = 6, lines: int = 40) -> None:
    """Some files of text that differ, the same on every machine."""
    folder.mkdir(parents=True)
    for number in range(files):
        rows = [
            " ".join(
                WORDS[(number * 7 + line * 3 + word * (1 + line % 5)) % len(WORDS)]
                for word in range(5 + (line + number) % 9)
            )
            for line in range(lines)
        ]
        (folder / f"{number:02}.txt").write_text("\n".join(rows) + "\n")


def tiny_preset(**changes: dict[str, Any]) -> dict[str, Any]:
    """A preset that trains 40 steps in about half a second, with everything that draws random numbers switched on."""
    preset: dict[str, Any] = {
        "name": "tiny",
        "output_dir": "run",
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 32, "dropout": 0.1},
        "tokenizer": {"type": "char"},
        "data": {"sources": [{"type": "files", "path": "corpus"}], "split": {"validation": 0.2}, "shuffle": True},
        "train": {
            "per_gpu_batch_size": 4,
            "accumulation_steps": 2,
            "max_steps": 40,
            "threads": 1,
            "precision": "fp32",
            "log_every_steps": 3,
            "eval_every_steps": 10,
            "save_every_steps": 4,
            "sample_every_steps": 20,
            "save_every_minutes": 1_000.0,
        },
        "generation": {"max_new_tokens": 8},
    }
    for section, values in changes.items():
        preset[section] = {**preset.get(section, {}), **values}
    return preset


def prepare(folder: Path, preset: dict[str, Any], *, lines: int = 40) -> Path:
    """A working directory with a corpus and a preset."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus", lines=lines)
    path = folder / "preset.json"
    path.write_text(json.dumps(preset))
    return path


@dataclass(frozen=True)
class Ended:
    """How a forked run ended: its exit status, or minus the number of the signal that killed it."""

    status: int
    output: str


def start(folder: Path, before: Callable[[], None] = lambda: None) -> int:
    """Fork a run of `folder/preset.json`; `before` runs in the child first. The child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        try:
            status = lmloop.run.train(load_preset("preset.json"))[1]
        except ValueError as error:
            print(f"lmloop: {error}", flush=True)
            status = 2
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(child: int, folder: Path, *, limit_s: float = 120.0) -> Ended:
    """Wait for a forked run; one that outlasts the limit is killed and counts as failed."""
    deadline = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(
                f"the run in {folder} did not end in {limit_s:.0f} s:\n{(folder / 'log.txt').read_text()[-2000:]}"
            )
        time.sleep(0.002)
    log = folder / "log.txt"
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace") if log.exists() else "")


def run_to_end(folder: Path, before: Callable[[], None] = lambda: None) -> Ended:
    """A whole forked run."""
    return wait(start(folder, before), folder)


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns, computed in a fork, as JSON: for what needs PyTorch."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            payload = json.dumps(function()).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(payload)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        payload = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the comparing process failed"
    return json.loads(payload)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what no resume can repeat."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING_KEYS} for line in lines]


def samples(folder: Path) -> list[str]:
    """The sample lines of a run."""
    path = folder / "run" / "samples.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the final states of two runs; empty when they are the same bit for bit."""
    found = in_child(lambda: _state_differences(one / "run" / "lm_current.pth", other / "run" / "lm_current.pth"))
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl differs")
    if samples(one) != samples(other):
        found.append("samples.jsonl differs")
    return found


def _state_differences(one: Path, other: Path) -> list[str]:
    import torch

    return state_differences(*(torch.load(path, weights_only=True, map_location="cpu") for path in (one, other)))


def state_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two states, but for timings. They are changed."""
    for state in (one, other):
        state["progress"]["elapsed_s"] = 0.0
        for key in ("seconds", "waited_s"):
            state["progress"]["interval"].pop(key, None)
        state["progress"]["last_step"].pop("memory_bytes", None)
        del state["files"]  # offsets: timings have more or fewer digits
    return _walk(one, other, "")


def _walk(one: Any, other: Any, where: str) -> list[str]:
    import torch

    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if same else [f"{where}: tensors differ"]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{where}: keys {sorted(map(str, set(one) ^ set(other)))[:5]}"]
        return [line for key in one for line in _walk(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} items"]
        return [line for i, (a, b) in enumerate(zip(one, other, strict=True)) for line in _walk(a, b, f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]
