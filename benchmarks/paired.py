"""Runs of the ordinary loop for benchmarks that compare trainings: small presets, paired seeds, means and intervals."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmloop.preset.reading import load_preset
from lmloop.run import train
from lmloop.use import evaluate_run

_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5 %, by degrees of freedom."""


def run(folder: Path, name: str, preset: dict[str, Any]) -> Path:
    """Train a preset in `folder`; its run's folder. SystemExit where it does not finish."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, **preset}))
    answer, status = train(load_preset(path), json_mode=True)
    if status or answer["status"] != "finished":
        raise SystemExit(f"{name}: {answer['reason']}")
    return Path(answer["run"])


def loss(run_dir: Path, data: Path) -> float:
    """Nats per token of a run's newest model on a whole file."""
    return float(evaluate_run(str(run_dir), "newest", data=str(data), split="validation")["cross_entropy"])


def halves(text: str, train_characters: int, held_out_characters: int) -> tuple[str, str]:
    """What is trained of a text, from its beginning, and what is held out, from its end."""
    assert train_characters + held_out_characters <= len(text), len(text)
    return text[:train_characters], text[-held_out_characters:]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval (Student's t) of what paired seeds gave."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.4f}"
    half = _T_975.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
