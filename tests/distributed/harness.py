"""Runs in several processes, as a launcher starts them, without the seconds that a launcher needs.

A server that has imported everything and computed nothing forks them. They find one another through a store that a process
of its own holds, as under `torchrun`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from lmloop.processes import Notes, Processes, find_place
from lmloop.training.checkpoint import CheckpointStore
from tests.distributed.faults import Fault
from tests.torture.harness import metrics as comparable_metrics
from tests.torture.harness import prepare, samples, state_differences, tiny_preset

LIMIT_S = 120.0
"""No case takes longer; a run that does is killed and has failed."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("tests.torture.harness", "lmloop.launch", "lmloop.cli", "torch.distributed.fsdp", "pytest"),
        *("transformers.models.qwen3.modeling_qwen3", "peft", "bitsandbytes"),  # each run that fine-tunes would import them
    ]
)


def no_fault(rank: int) -> None:
    return


@dataclass
class Ended:
    """How the processes of a run ended: exit statuses (minus the number of a signal) and what they said, by rank."""

    statuses: list[int]
    outputs: list[str]
    seconds: float

    @property
    def whole(self) -> bool:
        return not any(self.statuses)


class Run:
    """Started processes."""

    def __init__(self, folder: Path, world: int, work: Callable[[int], int]) -> None:
        """`work` is given the rank, in the folder, and returns the exit status."""
        self.folder = folder
        self.started = time.monotonic()
        port = free_port()
        self.store = _context.Process(target=_hold_store, args=(port,), daemon=True)
        self.ranks: list[ForkServerProcess] = [
            _context.Process(target=_be_rank, args=(folder, rank, world, port, work), daemon=True) for rank in range(world)
        ]
        self.store.start()
        for process in self.ranks:
            process.start()

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks, by default to all."""
        for rank in ranks or range(len(self.ranks)):
            pid = self.ranks[rank].pid
            assert pid is not None
            if self.ranks[rank].is_alive():
                os.kill(pid, number)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has happened."""
        while not condition():
            assert time.monotonic() - self.started < LIMIT_S, self.outputs()
            assert any(process.is_alive() for process in self.ranks), self.outputs()
            time.sleep(0.005)

    def outputs(self) -> list[str]:
        return [(self.folder / f"rank-{rank}.txt").read_text(errors="replace") for rank in range(len(self.ranks))]

    def wait(self, limit_s: float = LIMIT_S, *, ranks: Sequence[int] | None = None) -> Ended:
        """Wait for the end of some ranks (by default of all); the rest is killed."""
        asked = time.monotonic()
        late = []
        for rank in range(len(self.ranks)) if ranks is None else ranks:
            self.ranks[rank].join(max(limit_s - (time.monotonic() - asked), 0.0))
            late += [rank] if self.ranks[rank].is_alive() else []
        seconds = time.monotonic() - asked
        for process in (*self.ranks, self.store):
            process.kill()
            process.join()
        assert not late, f"ranks {late} did not end in {limit_s:.0f} s: {self.outputs()}"
        return Ended([process.exitcode or 0 for process in self.ranks], self.outputs(), seconds)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _hold_store(port: int) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    signal.pause()
    del store


def _be_rank(folder: Path, rank: int, world: int, port: int, work: Callable[[int], int]) -> None:
    os.chdir(folder)
    log = os.open(f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    status = work(rank)
    sys.stdout.flush()
    os._exit(status)


# ---- what is run ----

TRAIN = ("train", "preset.json")


def _command(rank: int, *, fault: Fault, words: Sequence[str]) -> int:
    from lmloop.cli import main

    fault(rank)
    return main(words)


def _joined(rank: int, *, work: Callable[[Processes], None]) -> int:
    processes = Processes.start(Notes(find_place()), cuda=False, limit_s=20.0)
    work(processes)
    processes.close()
    return 0


def together(folder: Path, work: Callable[[Processes], None], *, world: int = 2) -> Ended:
    """Do `work` in processes that know one another; an error in one shows in its output and its status."""
    return Run(folder, world, partial(_joined, work=work)).wait()


def start(folder: Path, *, world: int = 2, fault: Fault = no_fault, words: Sequence[str] = TRAIN) -> Run:
    """Start a run of `folder/preset.json`; one process is none of several."""
    return Run(folder, world, partial(_command, fault=fault, words=words))


def run(folder: Path, *, world: int = 2, fault: Fault = no_fault, words: Sequence[str] = TRAIN) -> Ended:
    """A whole run that must go well."""
    ended = start(folder, world=world, fault=fault, words=words).wait()
    assert ended.whole, ended
    return ended


def write(folder: Path, *, lines: int = 40, **changes: dict[str, Any]) -> Path:
    """A folder with a corpus and a preset that trains 12 updates of 8 rows."""
    train: dict[str, Any] = {
        "max_steps": 12,
        "per_gpu_batch_size": 4,
        "accumulation_steps": 1,
        "global_batch_size": 8,
        "eval_every_steps": 6,
        "sample_every_steps": 0,
        "save_every_steps": None,
        "log_every_steps": 1,
        "rank_timeout_s": 30.0,
    }
    base: dict[str, dict[str, Any]] = {"model": {"dropout": 0.0}, "train": train}
    sections = {name: {**base.get(name, {}), **changes.get(name, {})} for name in {*base, *changes}}
    prepare(folder, tiny_preset(**sections), lines=lines)
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` without timings."""
    return comparable_metrics(folder)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run.json").read_text())


def newest(folder: Path) -> dict[str, Any]:
    """The newest checkpoint, which must be whole."""
    loaded = CheckpointStore(folder / "run").load()
    assert loaded is not None
    assert loaded.notices == []
    return loaded.state


def saved_step(folder: Path) -> int:
    """The step of the newest checkpoint; -1 before there is one."""
    try:
        return json.loads((folder / "run" / "lm_current.manifest.json").read_text())["step"]
    except (FileNotFoundError, ValueError):
        return -1


def differences(one: Path, other: Path) -> list[str]:
    """Between the ends of two runs; none when they are the same bit for bit."""
    found = state_differences(newest(one), newest(other))
    found += ["metrics differ"] if metrics(one) != metrics(other) else []
    return found + (["samples differ"] if samples(one) != samples(other) else [])
