"""Several processes: two trainers that want the same folder, and one run of which some are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.distributed import faults
from tests.distributed import harness as ranks_harness
from tests.torture.harness import prepare, run_to_end, start, tiny_preset, wait
from tests.torture.workshop import Result


def two_trainers(folder: Path) -> Result:
    """The second trainer on a folder stops at once with a message; a lock left by kill -9 blocks nobody."""
    result = Result(cases=2)
    case = folder / "shared"
    prepare(case, tiny_preset(train={"max_steps": 100_000}))
    first = start(case)
    _await(lambda: (case / "run" / "lm_current.pth").exists())
    started = time.perf_counter()
    second = run_to_end(case)
    seconds = time.perf_counter() - started
    if second.status != 2 or str(first) not in second.output or seconds > 2.0:
        result.failures.append(f"second trainer: exit {second.status} after {seconds:.1f} s: {second.output[-300:]}")
    os.kill(first, signal.SIGKILL)
    wait(first, case)
    third = start(case)
    time.sleep(1.0)
    os.kill(third, signal.SIGTERM)
    ended = wait(third, case)
    if ended.status != 0:
        result.failures.append(f"after kill -9 the folder stays locked: {ended.output[-300:]}")
    return result


def several_processes(folder: Path, *, timed: int, in_saves: int, seed: int = 0) -> Result:
    """Two processes, whole and in parts: all of them or one killed at random times and inside saves; then on to the end."""
    result, chance = Result(), random.Random(seed)
    for parallel in ("ddp", "fsdp"):
        changes: dict[str, Any] = {
            "model": {"dropout": 0.1},
            "train": {"parallel": parallel, "optimizer": "muon", "max_steps": 30, "save_every_steps": 4},
        }
        reference = ranks_harness.write(folder / f"{parallel}-reference", **changes)
        duration_s = ranks_harness.run(reference).seconds

        def once(name: str, fault: faults.Fault, kill: list[int], delay_s: float, reference: Path = reference) -> None:
            case = folder / name
            shutil.copytree(reference, case, ignore=shutil.ignore_patterns("run"))
            going = ranks_harness.start(case, fault=fault)
            if kill:
                time.sleep(delay_s)
                going.signal(signal.SIGKILL, *kill)
            # The one that is left ends by itself, after a minute if the first one is gone before they have met.
            ended = going.wait(120.0)
            result.cases += 1
            result.note_kill(-signal.SIGKILL in ended.statuses)
            again = ranks_harness.start(case).wait()
            if not again.whole:
                result.failures.append(f"{name}: ended with {again.statuses}: {again.outputs[0][-600:]}")
                return
            result.failures += [f"{name}: {line}" for line in ranks_harness.differences(reference, case)[:3]]
            shutil.rmtree(case)

        for number in range(timed):
            killed = chance.choice([[0, 1], [0], [1]])
            once(f"{parallel}-time-{number}", ranks_harness.no_fault, killed, chance.uniform(0.0, 0.9 * duration_s))
        for number in range(in_saves):
            rank = chance.randrange(2 if parallel == "fsdp" else 1)
            fault = partial(faults.in_save, on=rank, at=chance.randrange(1, 100), what="SIGKILL")
            once(f"{parallel}-save-{number}", fault, [], 0.0)
    return result


def _await(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
