"""Going on in several processes: after any end, and in another number of them."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.use import evaluate_run
from tests.distributed import faults
from tests.distributed.harness import differences, metrics, newest, no_fault, run, saved_step, start, write

RANDOM: dict[str, Any] = {
    "model": {"dropout": 0.1},
    "train": {"max_steps": 20, "save_every_steps": 4, "sample_every_steps": 10, "eval_every_steps": 10},
    "generation": {"max_new_tokens": 6},
}
"""With everything that draws random numbers switched on."""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_killed_at_random_it_goes_on_bit_for_bit(parallel: str, tmp_path: Path) -> None:
    """Here in strict order, with threads that read ahead; `make torture` has many more."""
    changes = {
        **RANDOM,
        "train": {**RANDOM["train"], "parallel": parallel, "optimizer": "muon"},
        "data": {
            "mix_strategy": "sequential",
            "workers": 2,
            "sources": [{"type": "files", "path": "corpus", "file_pattern": f"0{number}.txt"} for number in range(6)],
        },
    }
    reference, killed = write(tmp_path / "reference", **changes), write(tmp_path / "killed", **changes)
    duration_s = run(reference).seconds
    chance = random.Random(7)
    for attempt in range(2):
        going = start(killed)
        before = saved_step(killed)
        going.until(lambda before=before: saved_step(killed) > before)
        time.sleep(chance.uniform(0.0, 0.3 * duration_s))
        going.signal(signal.SIGKILL)
        ended = going.wait()
        assert ended.statuses in ([-9, -9], [0, 0]), (attempt, ended)
    run(killed)
    assert differences(reference, killed) == []
    assert [path.name for path in (killed / "run").glob(".*") if path.name != ".lock"] == []


CHAIN = (("ddp", 2), ("ddp", 1), ("fsdp", 2), ("ddp", 2), ("fsdp", 3), ("fsdp", 1))
"""How a run goes on after each three updates."""


def test_any_number_of_processes_goes_on_in_data_and_state(tmp_path: Path) -> None:
    steps = 3 * len(CHAIN)
    reference, folder = write(tmp_path / "one", train={"max_steps": steps}), tmp_path / "chain"
    run(reference, world=1)
    for number, (parallel, world) in enumerate(CHAIN):
        write(folder, train={"max_steps": steps, "parallel": parallel})
        last = number == len(CHAIN) - 1
        fault = no_fault if last else partial(faults.in_step, on=world - 1, at=3 * -(-8 // (4 * world)), what="SIGTERM")
        said = run(folder, world=world, fault=fault).outputs[0]
        assert saved_step(folder) == 3 * (number + 1)
        before, now = CHAIN[number - 1], (parallel, world)
        if number and before[1] != world:
            (line,) = [line for line in said.splitlines() if "arithmetic may round differently" in line]
            assert f"processes was {before[1]}, now {world}, an update stays 8 rows" in line
        assert ("parallel was" in said) == bool(number and world > 1 and before[0] != now[0])
    for mine, theirs in zip(metrics(reference), metrics(folder), strict=True):
        for key in ("step", "tokens", "epoch", "sources"):
            assert mine[key] == theirs[key]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine.get("val_loss", 0.0) == pytest.approx(theirs.get("val_loss", 0.0), rel=1e-5)
    own, others = newest(reference), newest(folder)
    assert own["feed"] == others["feed"]
    for name, tensor in own["model"].items():
        torch.testing.assert_close(tensor, others["model"][name], rtol=1e-4, atol=1e-5)
    assert not list((folder / "run" / "shards").glob(f"{steps}-*"))  # one process writes whole tensors


def test_a_model_in_parts_is_read_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, train={"parallel": "fsdp"})
    run(folder)
    monkeypatch.chdir(folder)
    best = min(line["val_loss"] for line in metrics(folder) if "val_loss" in line)
    assert evaluate_run("run", "best", data=None, split="validation")["cross_entropy"] == pytest.approx(best, rel=1e-6)
    names = {path.name for path in (folder / "run" / "shards").iterdir()}
    assert {name.split("-")[0] for name in names} == {"0", "6", "12"}
