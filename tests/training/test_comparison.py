"""Before and after, of whole runs: measured at the two ends of a budget, once, however often the run stops between."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import lmloop.training.boundary
import lmloop.training.writing
from tests.runs import lines, quick_preset, quick_run, train
from tests.torture.harness import prepare


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def second_preset(here: Path, **changes: Any) -> Path:
    """New data in the folder of a run that is finished: short questions with answers, beside the old ones replayed."""
    (here / "questions").mkdir(exist_ok=True)
    for number in range(30):
        text = f"Q: the fox and {number} dogs?\nA: some thoughts\n#### {number}"
        (here / "questions" / f"{number:02}.txt").write_text(text)
    data = {
        "sources": [{"type": "files", "path": "questions"}],
        "replay": {"sources": [{"type": "files", "path": "corpus"}], "share": 0.25},
        "shuffle": False,
    }
    writes = {"chat_format": "Q: {user}\nA:", "prompts": ["Q: a dog?\nA:"], "max_new_tokens": 6, "questions": 3}
    steps = {"max_steps": 8, "eval_every_steps": 4, "sample_every_steps": 0, "log_every_steps": 1}
    return prepare(here, {**quick_preset(data=data, generation=writes, train=steps), "output_dir": "run", **changes})


def comparison(here: Path) -> dict[str, Any]:
    return json.loads((here / "run" / "comparison.json").read_text())


def test_a_model_from_scratch_has_no_before(here: Path) -> None:
    quick_run(here)
    assert not (here / "run" / "comparison.json").exists()


def test_both_halves_of_what_is_trained_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_run(here)
    monkeypatch.setattr(
        lmloop.training.writing.Writer,
        "answers",
        lambda self, prompts, stop: [f"#### {n}" if len(lines(Path("run/metrics.jsonl"))) > 8 else "no" for n in ASKED],
    )
    answer, status = train(second_preset(here))
    assert status == 0
    halves = comparison(here)
    before, after = halves["before"], halves["after"]
    assert (before["step"], after["step"], answer["step"]) == (6, 14, 14)
    metrics = [line for line in lines(here / "run" / "metrics.jsonl") if "val_loss" in line]
    assert after["loss"] == pytest.approx(metrics[-1]["val_loss"])
    assert after["sources"] == pytest.approx(metrics[-1]["val_sources"], abs=1e-5)
    assert set(after["sources"]) == {"questions", "corpus"}
    assert len(before["answers"]) == 3
    assert [answer["right"] for answer in before["answers"]] == [False] * 3
    assert [prompt for prompt, _ in before["samples"]] == ["Q: a dog?\nA:"]
    report = (here / "run" / "report.html").read_text()
    assert "Before and after" in report
    assert "0 of 3" in report
    assert "Distinct-1" in report


ASKED = (0, 1, 2)


def test_the_replayed_share_is_that_of_the_rows(here: Path) -> None:
    quick_run(here)
    train(second_preset(here))
    shares = [line["sources"] for line in lines(here / "run" / "metrics.jsonl") if line["step"] > 6 and line["sources"]]
    assert sum(share.get("corpus", 0.0) for share in shares) / len(shares) == pytest.approx(0.25, abs=0.02)


def test_it_survives_a_stop_before_and_between(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of measuring, it is measured anew; stopped later, what was measured stays."""
    quick_run(here)
    path = second_preset(here)
    samples = lmloop.training.writing.Writer.samples
    with monkeypatch.context() as patch:
        patch.setattr(lmloop.training.writing.Writer, "samples", lambda self, stop: os.kill(os.getpid(), signal.SIGINT))
        assert train(path)[0]["status"] == "stopped"
    assert not (here / "run" / "comparison.json").exists()
    after_step = lmloop.training.boundary.Boundary.after_step

    def interrupted(self: Any, *args: Any, **named: Any) -> None:
        after_step(self, *args, **named)
        if self.progress.step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(lmloop.training.boundary.Boundary, "after_step", interrupted)
        assert train(path)[0]["status"] == "stopped"
    before = comparison(here)["before"]
    assert before["step"] == 6
    assert "after" not in comparison(here)
    calls: list[int] = []
    monkeypatch.setattr(
        lmloop.training.writing.Writer, "samples", lambda self, stop: (calls.append(1), samples(self, stop))[1]
    )
    assert train(path)[0]["step"] == 14
    assert comparison(here)["before"] == before
    assert comparison(here)["after"]["step"] == 14
    assert len(calls) == 1


def test_findings_stand_in_the_report_and_the_answer(here: Path) -> None:
    quick_run(here)
    answer, _ = train(second_preset(here))
    report = (here / "run" / "report.html").read_text()
    assert isinstance(answer["findings"], list)
    for finding in answer["findings"]:
        assert "\n" not in finding
        assert finding.partition(":")[0] in report
