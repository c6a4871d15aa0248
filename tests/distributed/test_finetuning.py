"""Fine-tuning in several processes: the same data and the same loss as in one, and on from there bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.harness import differences, metrics, newest, run, saved_step, start
from tests.finetuning import write_finetuning

TRAIN: dict[str, Any] = {"global_batch_size": 4, "rank_timeout_s": 60.0, "accumulation_steps": 1, "sample_every_steps": 0}


def write(folder: Path, kind: str, **train: Any) -> Path:
    write_finetuning(folder, kind, train={**TRAIN, **train}, adapter={"dropout": 0.0})
    return folder


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_two_processes_train_what_one_does(kind: str, tmp_path: Path) -> None:
    alone, both = write(tmp_path / "alone", kind), write(tmp_path / "both", kind)
    run(alone, world=1)
    run(both, world=2)
    one, two = metrics(alone), metrics(both)
    assert [(line["tokens"], line["sources"]) for line in one] == [(line["tokens"], line["sources"]) for line in two]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    names = set(newest(both)["model"])
    assert names == set(newest(alone)["model"])
    assert all(".lora_" in name for name in names)


def test_a_killed_one_goes_on_bit_for_bit(tmp_path: Path) -> None:
    reference, killed = write(tmp_path / "reference", "lora"), write(tmp_path / "killed", "lora")
    run(reference)
    going = start(killed)
    going.until(lambda: saved_step(killed) > 0)
    going.signal(signal.SIGKILL)
    going.wait()
    run(killed)
    assert differences(reference, killed) == []


def test_fsdp_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "parts", "lora", parallel="fsdp")
    ended = start(folder).wait()
    assert ended.statuses == [2, 2]
    (line,) = [line for line in ended.outputs[0].splitlines() if "fsdp" in line]
    assert "use 'ddp'" in line
    assert not (folder / "run").exists()
