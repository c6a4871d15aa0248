"""What stops a training and what is only said, on findings made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.check.bad_rows import BadRows, CountingQuarantine
from lmloop.check.budget import budget_of
from lmloop.check.counts import PartCounts, TextSigns
from lmloop.check.duplicates import Repeat, Repeats
from lmloop.check.findings import Findings, SourceFindings
from lmloop.check.verdict import judge
from lmloop.preset.schema import Preset


def judged(
    *,
    train: dict[str, Any] | None = None,
    validation: dict[str, Any] | None = None,
    repeats: dict[str, tuple[int, int]] | None = None,
    source: dict[str, Any] | None = None,
    preset: dict[str, Any] | None = None,
    **changes: Any,
) -> Findings:
    """The findings of one source with 1,000 good documents, with changes."""
    sections = {"train": {"per_gpu_batch_size": 2, "epochs": 1}, **(preset or {})}
    model = {"seq_length": 10, "hidden_size": 16, "num_heads": 2}
    checked = Preset.model_validate({"name": "p", "model": model, "data": {"sources": ["python_stdlib"]}, **sections})
    good = {"documents": 1_000, "characters": 50_000, "tokens": 20_000, "trained_tokens": 20_000, "complete": True}
    parts = {"train": PartCounts("s", "train", **{**good, **(train or {})})}
    if validation is not None:
        parts["validation"] = PartCounts("s", "validation", **{**good, "documents": 100, **validation})
    first = Repeat("a#7", "a#3", 0)
    found = SourceFindings(
        "s",
        parts,
        {name: Repeats(exact, near, first if exact else None, first) for name, (exact, near) in (repeats or {}).items()},
        **(source or {}),
    )
    disk = {"checkpoint_bytes": 10, "free_bytes": 20}
    findings = Findings("p", "p.json", "run", 10, sources=[found], **{**disk, **changes})
    findings.budget = budget_of(checked, [parts["train"]])
    judge(findings, checked)
    return findings


GOOD: dict[str, Any] = {"validation": {}}
NO_VALIDATION = {"preset": {"data": {"sources": ["python_stdlib"], "split": {"validation": 0.0}}}}

PROBLEMS: list[tuple[str, dict[str, Any], str]] = [
    ("refused", {**GOOD, "source": {"refusal": "source 's': 9 of 20 rows are bad"}}, "9 of 20 rows are bad"),
    ("breaks off", {**GOOD, "train": {"failure": "the disk is gone", "complete": False}}, "the disk is gone"),
    ("nothing", {**GOOD, "train": {"trained_tokens": 0}}, "nothing to train"),
    ("less than a row", {**GOOD, "train": {"trained_tokens": 9}}, "less than one row of model.seq_length 10"),
    ("less than an update", {**GOOD, "train": {"trained_tokens": 19}}, "an update takes 20"),
    ("no validation", {}, "validation is empty"),
    ("no validation documents", {"validation": {"documents": 0}}, "validation is empty"),
    ("leaks", {**GOOD, "repeats": {"validation": (6, 0)}}, "6 documents (6 %) of validation also stand in training"),
    ("leaks nearly", {**GOOD, "repeats": {"validation": (5, 16)}}, "5 exactly, 16 nearly; first a#7 = a#3"),
    ("repeats", {**GOOD, "repeats": {"train": (301, 200)}}, "501 documents (50.1 %) repeat an earlier one"),
    ("disk", {**GOOD, "checkpoint_bytes": 5_000, "free_bytes": 4_000}, "5 kB and the disk has 4 kB left"),
]


@pytest.mark.parametrize(("changes", "said"), [case[1:] for case in PROBLEMS], ids=[case[0] for case in PROBLEMS])
def test_a_problem_is_one_line(changes: dict[str, Any], said: str) -> None:
    findings = judged(**changes)
    assert not findings.ok
    assert len(findings.problems) == 1, findings.problems
    assert said in findings.problems[0]
    assert "\n" not in findings.problems[0]


FINE: list[tuple[str, dict[str, Any], str]] = [
    ("good", GOOD, ""),
    ("no validation wanted", NO_VALIDATION, ""),
    ("just a row", {**GOOD, "train": {"trained_tokens": 20}}, ""),
    ("some leaks", {**GOOD, "repeats": {"validation": (5, 15)}}, "20 documents (20 %) of validation also stand in training"),
    ("some repeats", {**GOOD, "repeats": {"train": (300, 200)}}, "500 documents (50 %) repeat an earlier one"),
    ("few repeats", {**GOOD, "repeats": {"train": (30, 20)}}, ""),
    ("a source left out", {**GOOD, "notices": ["left out: source 'x'"]}, "left out: source 'x'"),
    (
        "a bad row",
        {**GOOD, "source": {"bad": [BadRows("not UTF-8", 1, "a.txt", 4)]}},
        "1 bad row left out, most often: not UTF-8 (first a.txt:4)",
    ),
    ("untrained", {**GOOD, "train": {"documents_without_training": 10}}, "in 10 documents (1 %) nothing is trained"),
    ("lost characters", {**GOOD, "train": {"signs": TextSigns(replacement_characters=50)}}, "50 characters are U+FFFD"),
    ("few lost characters", {**GOOD, "train": {"signs": TextSigns(replacement_characters=5)}}, ""),
    ("read twice", {**GOOD, "train": {"signs": TextSigns(twice_decoded=50)}}, "50 places look like UTF-8"),
    (
        "many passes",
        {**GOOD, "preset": {"train": {"epochs": 41, "per_gpu_batch_size": 2}}},
        "source 's': the budget reads it 41 times",
    ),
    ("passes", {**GOOD, "preset": {"train": {"epochs": 40, "per_gpu_batch_size": 2}}}, ""),
    ("a part", {**GOOD, "train": {"trained_tokens": 5, "complete": False}}, ""),
    ("interrupted", {"train": {"trained_tokens": 0, "complete": False}, "interrupted": True}, ""),
    (
        "one of two is too short",
        {**GOOD, "train": {"documents": 0, "too_short": 3}},
        "all of its 3 documents are shorter than data.min_text_length",
    ),
]


@pytest.mark.parametrize(("changes", "warning"), [case[1:] for case in FINE], ids=[case[0] for case in FINE])
def test_what_is_no_problem_is_a_warning_or_nothing(changes: dict[str, Any], warning: str) -> None:
    findings = judged(**changes)
    assert findings.problems == []
    assert len(findings.warnings) == bool(warning), findings.warnings
    assert warning in "".join(findings.warnings)


def test_bad_rows_are_counted_to_the_end_by_reason() -> None:
    quarantine = CountingQuarantine(0.2)
    for number in range(1, 101):
        if number % 2:
            quarantine.bad("s", "a.jsonl", number, f"not JSON: Expecting value at character {number}", "excerpt")
            quarantine.check("s", number // 2, number - number // 2)
    quarantine.bad("s", "b.jsonl", 7, "torn last line")
    quarantine.bad("s", "b.jsonl", 7, "torn last line")  # read again
    quarantine.bad("other", "c", 0, "not a file but a pipe")
    assert quarantine.summary("s") == [
        BadRows("not JSON: Expecting value at character 1", 50, "a.jsonl", 1),
        BadRows("torn last line", 1, "b.jsonl", 7),
    ]
    assert quarantine.summary("other") == [BadRows("not a file but a pipe", 1, "c", 0)]
    assert quarantine.summary("fine") == []
    assert list(quarantine.refusals) == ["s"]
    assert "11 of the first 21 rows are bad" in quarantine.refusals["s"]


def test_rare_reasons_are_put_together() -> None:
    quarantine = CountingQuarantine(1.0)
    kinds = ["".join(pair) for pair in zip("abcdefghijklmnopqrstuvwxyz", "zyxwvutsrqponmlkjihgfedcba", strict=True)]
    for line, kind in enumerate(kinds):
        quarantine.bad("s", "f", line, kind)
    quarantine.bad("s", "f", 99, kinds[-1])
    summary = quarantine.summary("s")
    assert len(summary) == 21
    assert summary[0] == BadRows(kinds[-1], 2, "f", 25)
    assert (summary[-1].reason, summary[-1].rows) == ("other reasons", 6)
