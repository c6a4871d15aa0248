"""Findings of made-up runs: each named by its own symptom, and none where all is well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmloop.training.diagnosis import diagnose
from lmloop.training.run_files import Metrics, read_run


def metrics_of(
    tmp_path: Path, train: Sequence[float], validation: Sequence[float], sources: Sequence[dict[str, float]] = ()
) -> Metrics:
    rows = [
        {"step": n, "tokens": 100 * n, "loss": loss, "val_loss": val, "seq_len": 8}
        for n, (loss, val) in enumerate(zip(train, validation, strict=True), 1)
    ]
    for row, losses in zip(rows, sources, strict=False):
        row["val_sources"] = losses  # type: ignore[assignment]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(tmp_path).metrics


OVER = ([3, 2.5, 2.0, 1.5, 1.0, 0.7], [3.1, 2.6, 2.4, 2.5, 2.7, 3.0])
UNDER = ([3, 2.8, 2.6, 2.4, 2.2, 2.0], [3.1, 2.9, 2.7, 2.5, 2.3, 2.1])
LEVEL = ([3, 2.5, 2.2, 2.1, 2.1, 2.1], [3.1, 2.6, 2.25, 2.15, 2.15, 2.15])


@pytest.mark.parametrize(
    ("curves", "adapter", "name", "remedy"),
    [
        (OVER, False, "Over-fitting", "model.dropout"),
        (OVER, True, "Over-fitting", "adapter.dropout"),
        (UNDER, False, "Under-fitting", "Train longer"),
        (LEVEL, True, "Under-fitting", "adapter.rank"),
    ],
)
def test_curves_are_named(tmp_path: Path, curves: Any, adapter: bool, name: str, remedy: str) -> None:
    (finding,) = diagnose(metrics_of(tmp_path, *curves), [], {}, adapter=adapter)
    assert finding.name == name
    assert remedy in finding.remedy
    assert "\n" not in str(finding)


def test_forgetting_is_told_by_the_source_that_got_worse(tmp_path: Path) -> None:
    sources = [{"old": 2.0 + n / 10, "new": 3.0 - n / 5} for n in range(6)]
    found = diagnose(metrics_of(tmp_path, *UNDER, sources), [], {})
    (forgotten,) = [finding for finding in found if finding.name == "Forgetting"]
    assert "'old' rose by 25 %, from 2.000 to 2.500" in forgotten.symptom
    assert "data.replay" in forgotten.remedy


def test_what_was_known_before_training_counts(tmp_path: Path) -> None:
    """The first evaluation of the run may come when it is already forgotten."""
    sources = [{"old": 2.5, "new": 3.0 - n / 5} for n in range(6)]
    assert all(f.name != "Forgetting" for f in diagnose(metrics_of(tmp_path, *UNDER, sources), [], {}))
    before = {"before": {"sources": {"old": 2.0, "new": 4.0}}}
    assert "Forgetting" in [f.name for f in diagnose(metrics_of(tmp_path, *UNDER, sources), [], before)]


def test_repetition_is_told_by_the_newest_samples(tmp_path: Path) -> None:
    fluent = "every word of this sample differs from the others that stand beside it in one long plain sentence of mine"
    circling = "the cat sat on " * 10
    metrics = metrics_of(tmp_path, [1.0], [1.0])
    old = [{"step": 1, "text": circling}]
    assert diagnose(metrics, [*old, {"step": 2, "text": fluent}], {}) == []
    (finding,) = diagnose(metrics, [{"step": 1, "text": fluent}, {"step": 2, "text": circling}], {})
    assert finding.name == "Repetition"
    assert "generation.repetition_penalty" in finding.remedy


def test_too_little_to_judge_by_is_no_finding(tmp_path: Path) -> None:
    assert diagnose(metrics_of(tmp_path, [3, 2], [3, 2]), [{"step": 1, "text": "a a a a"}], {}) == []
