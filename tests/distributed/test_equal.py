"""Several processes train what one does: the same rows in the same updates, with the same loss but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import metrics, newest, run, write

FP32 = 1e-5
"""Relative. Two processes add the same numbers in another order."""

MUON = 5e-3
"""Its iteration in bf16 turns a last bit of the momentum into a last bit of a bf16 number."""


def assert_same_run(one: Path, several: Path, tolerance: float) -> None:
    first, second = metrics(one), metrics(several)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for mine, theirs in zip(first, second, strict=True):
        for key in ("tokens", "sources", "epoch", "seq_len", "skipped", "val_tokens"):
            assert mine.get(key) == theirs.get(key), (mine["step"], key)
        for key in ("loss", "grad_norm", "lr", "fraction", "val_loss", "val_bits_per_byte"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=tolerance), (mine["step"], key)
    own, others = newest(one)["model"], newest(several)["model"]
    assert list(own) == list(others)
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, others[name], rtol=tolerance, atol=tolerance, msg=name)


CASES: dict[str, tuple[int, float, dict[str, Any]]] = {
    "ddp": (2, FP32, {}),
    "ddp, accumulating, fewer rows than ranks at the end": (
        3,
        FP32,
        {"train": {"per_gpu_batch_size": 1, "global_batch_size": 7, "max_steps": None, "epochs": 1}},
    ),
    "ddp, rows that grow, packed mix": (
        2,
        FP32,
        {
            "train": {"sequence_schedule": [4, 32], "optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.5},
            "data": {"sources": [{"type": "files", "path": "corpus", "file_pattern": f"{n:02}.txt"} for n in range(3)]},
        },
    ),
    "ddp, muon": (2, MUON, {"train": {"optimizer": "muon"}}),
    "fsdp": (2, FP32, {"train": {"parallel": "fsdp"}}),
    "fsdp, muon, uneven parts": (
        3,
        MUON,
        {"train": {"parallel": "fsdp", "optimizer": "muon", "per_gpu_batch_size": 1}, "model": {"hidden_size": 20}},
    ),
    "fsdp, gpt2, sgd, recomputed": (
        2,
        FP32,
        {
            "train": {"parallel": "fsdp", "activation_checkpointing": True, "optimizer": "sgd", "learning_rate": 0.1},
            "model": {"architecture": "gpt2"},
        },
    ),
    "fsdp, bf16": (2, 0.01, {"train": {"parallel": "fsdp", "precision": "bf16"}}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_curve_is_that_of_one_process(name: str, tmp_path: Path) -> None:
    world, tolerance, changes = CASES[name]
    one, several = write(tmp_path / "one", lines=12, **changes), write(tmp_path / "several", lines=12, **changes)
    run(one, world=1)
    run(several, world=world)
    assert_same_run(one, several, tolerance)
