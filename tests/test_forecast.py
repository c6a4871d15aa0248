"""How long a run takes: what is counted beforehand is what runs then do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lmloop.training.measures
from lmloop.forecast import Speeds, Work, reflections, samples, save_seconds, time_by_part
from lmloop.preset.reading import load_preset
from lmloop.training.boundary import _sample_due
from lmloop.training.journal_file import parse
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.writing import Writer
from tests.finetuning import write_finetuning
from tests.runs import lines, train, write_preset

FREE = Speeds(start_s=0.0, compile_s=0.0, update_s=0.0, read_per_s=1.0, write_s=0.0, save_s=0.0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("every", [0, 1, 3, 16, 20, 32, 64, 100, 250])
def test_samples_are_counted_as_they_are_due(every: int) -> None:
    for first in (0, 5, 16, 40):
        for last in range(first + 1, first + 140, 7):
            due = [step for step in range(first + 1, last + 1) if _sample_due(step, every) or (every and step == last)]
            assert samples(first, last, every) == len(due), (first, last, every)


class Counted:
    """How often a function of a run was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls = 0
        inner = getattr(owner, name)

        def outer(*args: Any, **named: Any) -> Any:
            self.calls += 1
            return inner(*args, **named)

        monkeypatch.setattr(owner, name, outer)


SCHEDULES: list[dict[str, Any]] = [
    {"max_steps": 21, "eval_every_steps": 7, "sample_every_steps": 40, "save_every_steps": None},
    {"max_steps": 20, "eval_every_steps": 6, "sample_every_steps": 18, "save_every_steps": None},
    {"max_steps": 5, "eval_every_steps": 10, "sample_every_steps": 0, "save_every_steps": None},
]


@pytest.mark.parametrize("changes", SCHEDULES, ids=["a multiple", "something over", "only the end"])
def test_a_run_does_what_was_counted(changes: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_preset(here, train={**changes, "log_every_steps": 1, "learning_rate": 1e-4, "warmup_steps": 0})
    evaluations = Counted(monkeypatch, lmloop.training.measures, "evaluate")
    written = Counted(monkeypatch, Writer, "samples")
    saved = Counted(monkeypatch, Snapshots, "_write")
    assert train(path)[1] == 0
    work = Work(changes["max_steps"], evaluated_positions=10)
    parts = time_by_part(load_preset(path).preset, work, Speeds(3.0, 2.0, 0.5, read_per_s=10.0, write_s=0.25, save_s=1.0))
    assert parts["evaluate"] == evaluations.calls
    assert parts["sample"] == written.calls * 4 * 0.25  # max_new_tokens is 4
    assert parts["train"] == changes["max_steps"] / 2
    assert (parts["start"], parts["compile"]) == (3.0, 2.0)
    # At this rate each evaluation is the best so far, or one is not: the forecast is the most that there may be.
    assert saved.calls <= parts["save"] <= saved.calls + evaluations.calls


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_a_model_can_do_before_and_after(kind: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_finetuning(here, kind, train={"max_steps": 6, "eval_every_steps": 3, "sample_every_steps": 0})
    evaluations = Counted(monkeypatch, lmloop.training.measures, "evaluate")
    written, answered = Counted(monkeypatch, Writer, "samples"), Counted(monkeypatch, Writer, "answers")
    assert train(path)[1] == 0
    preset = load_preset(path).preset
    read = time_by_part(preset, Work(6, evaluated_positions=1), FREE)
    assert read["evaluate"] == evaluations.calls == 3
    speeds = Speeds(0.0, 0.0, 0.0, read_per_s=1.0, write_s=1 / preset.generation.max_new_tokens, save_s=0.0)
    texts = time_by_part(preset, Work(6, questions=answered.calls), speeds)
    assert texts["evaluate"] == written.calls + answered.calls
    rest = time_by_part(preset, Work(2, first=4, questions=answered.calls), speeds)  # of a run that goes on
    assert rest["evaluate"] == texts["evaluate"] / 2


def test_a_journal_is_written_after_each_epoch(here: Path) -> None:
    changes = {"max_steps": None, "epochs": 3, "sample_every_steps": 0, "save_every_steps": None}
    path = write_preset(here, train=changes, journal={"reflection_tokens": 10})
    assert train(path)[1] == 0
    parts = parse((here / "run" / "journal.md").read_text())
    preset = load_preset(path).preset
    schedule = Schedule(preset.train, seq_length=16, tokens_per_step=64)
    assert reflections(preset, schedule, 1_000) == sum(part.kind in ("entry", "dropped") for part in parts) == 3
    speeds = Speeds(0.0, 0.0, 0.0, read_per_s=1.0, write_s=0.1, save_s=0.0)
    assert time_by_part(preset, Work(10, reflections=3), speeds)["sample"] == pytest.approx(3.0)


def test_a_long_run_saves_by_the_clock(here: Path) -> None:
    rarely = {"eval_every_steps": 1_000, "save_every_steps": None, "save_every_minutes": 5.0}
    path = write_preset(here, train={"max_steps": 1_000, **rarely})
    preset = load_preset(path).preset
    speeds = Speeds(0.0, 0.0, update_s=3.0, read_per_s=1.0, write_s=0.0, save_s=2.0)
    assert time_by_part(preset, Work(1_000), speeds)["save"] == 2.0 * 3_000 // 300
    assert save_seconds(10**9) > 1.0 > save_seconds(1)


def test_nothing_is_evaluated_without_held_out_text(here: Path) -> None:
    path = write_preset(here, data={"split": {"validation": 0.0}})
    assert train(path)[1] == 0
    assert all("val_loss" not in line for line in lines(here / "run" / "metrics.jsonl"))
    slow = Speeds(0.0, 0.0, 0.0, read_per_s=0.0, write_s=0.0, save_s=0.0)
    assert time_by_part(load_preset(path).preset, Work(6), slow)["evaluate"] == 0.0
