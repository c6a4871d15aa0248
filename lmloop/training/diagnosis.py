"""What went wrong in a run, by name, and what to do about it: from its own figures, a line each.

- *over-fitting*: validation rises while the training loss falls (`verdict`). Fewer epochs, more dropout.
- *under-fitting*: validation still falls at the end, or both losses have levelled off together (`verdict`). A longer run, a
  higher learning rate, a larger model or adapter.
- *forgetting*: the loss on one held-out source has risen by more than RISE since the beginning. A lower rate, a shorter
  run, replay.
- *repetition*: fewer than FEWEST_DISTINCT of the pairs of words in the newest samples differ. A higher temperature, a
  penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmloop.training import figures
from lmloop.training.questions import distinct
from lmloop.training.run_files import Metrics
from lmloop.training.verdict import judge

RISE = 0.01
FEWEST_DISTINCT = 0.5
FEWEST_WORDS = 20
"""Samples of fewer words together say nothing."""


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong: its name, what shows it, what to do."""

    name: str
    symptom: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.symptom}. {self.remedy}."


def diagnose(
    metrics: Metrics, samples: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any], *, adapter: bool = False
) -> list[Finding]:
    """The findings of a run, the gravest first. comparison: see `training/comparison.py`; {} without one. adapter: it trains
    an adapter."""
    findings = [_fit(metrics, adapter), *_forgetting(metrics, comparison), _repetition(samples)]
    return [finding for finding in findings if finding is not None]


def _fit(metrics: Metrics, adapter: bool) -> Finding | None:
    fit = judge(metrics)
    rules = {rule.name: rule.numbers for rule in fit.rules}
    dropout, larger = ("adapter.dropout", "a higher adapter.rank") if adapter else ("model.dropout", "a larger model")
    if fit.label in ("over-fits", "begins to over-fit"):
        symptom = rules["Over-fitting" if fit.label == "over-fits" else "Gap"]
        return Finding("Over-fitting", symptom, f"Train fewer epochs, raise {dropout}, or add data; lm_best.pth is kept")
    if fit.label == "still improving":
        return Finding("Under-fitting", rules["Still improving"], "Train longer, or raise train.learning_rate")
    if fit.label == "levelled off":
        symptom = "training and validation loss have levelled off close together"
        return Finding("Under-fitting", symptom, f"Raise train.learning_rate, or take {larger}")
    return None


def _forgetting(metrics: Metrics, comparison: Mapping[str, Any]) -> list[Finding]:
    evaluated = [losses for losses in metrics.val_sources if losses]
    if not evaluated:
        return []
    before = comparison.get("before")
    known = before.get("sources") if isinstance(before, dict) else None
    first = known if isinstance(known, dict) and known else evaluated[0]
    findings = []
    for name, last in evaluated[-1].items():
        start = first.get(name)
        if isinstance(start, int | float) and start > 0 and last > start * (1 + RISE):
            rise = figures.percent(last / start - 1)
            symptom = f"held-out loss on '{name}' rose by {rise}, from {start:.3f} to {last:.3f}"
            remedy = "Lower train.learning_rate, train for a shorter time, or mix (more of) the old data in with data.replay"
            findings.append(Finding("Forgetting", symptom, remedy))
    return findings


def _repetition(samples: Sequence[Mapping[str, Any]]) -> Finding | None:
    steps = [sample.get("step") for sample in samples]
    newest = [str(sample.get("text", "")) for sample in samples if sample.get("step") == steps[-1]]
    share = distinct(newest, 2)
    if share is None or share >= FEWEST_DISTINCT or sum(len(text.split()) for text in newest) < FEWEST_WORDS:
        return None
    return Finding(
        "Repetition",
        f"only {share:.0%} of the pairs of words in the newest samples differ",
        "Raise generation.temperature, or set generation.repetition_penalty to 1.1",
    )
