"""Whole runs of a model that trains in a fraction of a second, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lmloop.plan
import lmloop.run
from lmloop.preset.reading import load_preset
from lmloop.preset.schema import Preset
from tests.torture.harness import prepare, tiny_preset

QUICK: dict[str, dict[str, Any]] = {
    "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "seq_length": 16, "dropout": 0.0},
    "train": {
        "per_gpu_batch_size": 4,
        "accumulation_steps": 1,
        "max_steps": 6,
        "log_every_steps": 1,
        "eval_every_steps": 3,
        "eval_tokens": 200,
        "save_every_steps": 2,
        "sample_every_steps": 3,
    },
    "generation": {"max_new_tokens": 4},
}


def quick_preset(**changes: dict[str, Any]) -> dict[str, Any]:
    """`tiny_preset`, smaller still."""
    sections = {*QUICK, *changes}
    return tiny_preset(**{name: {**QUICK.get(name, {}), **changes.get(name, {})} for name in sections})


def write_preset(folder: Path, *, name: str = "", output_dir: str = "run", **changes: dict[str, Any]) -> Path:
    """A preset's file in `folder`, beside a corpus."""
    preset = {**quick_preset(**changes), "output_dir": output_dir}
    path = prepare(folder, preset if not name else {**preset, "name": name})
    return path.rename(folder / f"{name}.json") if name else path


def train(path: Path) -> tuple[dict[str, Any], int]:
    """Train the preset in the present folder: what it answers, and its exit status."""
    return lmloop.run.train(load_preset(path))


def quick_run(folder: Path, *, name: str = "", output_dir: str = "run", **changes: dict[str, Any]) -> dict[str, Any]:
    """A run that must go well; `folder` is the present one."""
    answer, status = train(write_preset(folder, name=name, output_dir=output_dir, **changes))
    assert status == 0, answer
    return answer


def measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan measures for two seconds; here it need not be exact."""
    measure = lmloop.plan._measure

    def briefly(preset: Preset, vocabulary: int, **named: Any) -> lmloop.plan.Plan:
        return measure(preset, vocabulary, **{**named, "at_least_s": 0.05})

    monkeypatch.setattr(lmloop.plan, "_measure", briefly)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with the contents of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }
