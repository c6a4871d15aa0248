"""How many rows at a time fit in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop.training.fitting
from lmloop.preset.reading import load_preset
from lmloop.run import train
from lmloop.training.checkpoint import CheckpointStore
from lmloop.training.fitting import largest_divisor
from tests.torture.harness import prepare, tiny_preset


def memory(per_row: int, *, base: int = 100, fails_above: int | None = None) -> Any:
    """Peaks of a program that takes `base`, and `per_row` more for each row; the numbers that were tried."""
    tried: list[int] = []

    def peak(rows: int) -> int:
        tried.append(rows)
        if fails_above is not None and rows > fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return base + per_row * rows

    return peak, tried


@pytest.mark.parametrize(
    ("at_most", "room", "fits", "tried"),
    [
        (12, 10_000, 12, [1, 2, 3, 4, 6, 12]),
        (12, 100 + 10 * 7, 6, [1, 2, 3, 4, 6]),  # 12 would take 220: not even tried
        (12, 100 + 10 * 12, 12, [1, 2, 3, 4, 6, 12]),
        (7, 100 + 10 * 6, 1, [1]),
        (1, 0, 1, [1]),
    ],
)
def test_the_largest_that_is_foreseen_to_fit(at_most: int, room: int, fits: int, tried: list[int]) -> None:
    peak, given = memory(10)
    assert largest_divisor(at_most, peak, before_bytes=100, room_bytes=room) == fits
    assert given == tried


def test_where_allocations_fail_that_decides() -> None:
    peak, tried = memory(10, fails_above=5)
    assert largest_divisor(16, peak, before_bytes=0, room_bytes=10**9) == 4
    assert tried == [1, 2, 4, 8]
    peak, _ = memory(10, fails_above=0)
    with pytest.raises(torch.OutOfMemoryError):
        largest_divisor(16, peak, before_bytes=0, room_bytes=10**9)


AUTO = {"per_gpu_batch_size": "auto", "accumulation_steps": 1, "global_batch_size": 8, "max_steps": 4}


def test_a_run_finds_it_once_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of the size that was found the run is, bit for bit, the one whose preset has that size."""
    monkeypatch.chdir(tmp_path)
    for name, section in {
        "auto": AUTO,
        "fixed": {**AUTO, "per_gpu_batch_size": 2, "accumulation_steps": 4, "global_batch_size": None},
    }.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr(lmloop.training.fitting, "largest_divisor", lambda *args, **named: 2)
        assert train(load_preset(prepare(tmp_path / name, tiny_preset(train=section))))[1] == 0
    states = {name: CheckpointStore(tmp_path / name / "run").load("newest") for name in ("auto", "fixed")}
    auto, fixed = (state.state for state in states.values() if state is not None)
    assert auto["progress"]["tokens_at_a_time"] == 2 * 32
    for name, weight in auto["model"].items():
        assert torch.equal(weight, fixed["model"][name]), name

    def never(*args: object, **named: object) -> int:
        raise AssertionError("it was found when the run began")

    monkeypatch.chdir(tmp_path / "auto")
    monkeypatch.setattr(lmloop.training.fitting, "largest_divisor", never)
    assert train(load_preset(prepare(tmp_path / "auto", tiny_preset(train={**AUTO, "max_steps": 6}))))[1] == 0
    lines = [json.loads(line) for line in (tmp_path / "auto" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"per_gpu_batch_size": "auto"}, "global_batch_size"),
        ({**AUTO, "accumulation_steps": 2}, "global_batch_size"),
        ({**AUTO, "parallel": "fsdp"}, "give a number"),
        ({"per_gpu_batch_size": "automatic"}, "auto"),
    ],
)
def test_presets_that_make_no_sense(tmp_path: Path, section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_preset(prepare(tmp_path, tiny_preset(train=section)))
