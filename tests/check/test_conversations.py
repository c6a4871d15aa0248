"""check-data on conversations: what is trained is shown, and what does not fit is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmloop.check.data import check_data
from lmloop.check.findings import Findings
from lmloop.check.reading import Reading
from lmloop.preset.reading import load_preset
from tests.finetuning import write_finetuning


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(path: Path) -> Findings:
    with Reading() as reading:
        return check_data(load_preset(path), reading, limit=None, samples=2)


def test_answers_and_their_ends_are_what_is_trained(here: Path) -> None:
    findings = checked(write_finetuning(here, "lora", model={"seq_length": 256}))
    assert findings.problems == []
    (source,) = findings.sources
    train = source.parts["train"]
    assert (train.documents, train.cut, train.too_long, train.cut_at_a_turn) == (64, 0, 0, 0)
    assert 0 < train.trained_tokens < train.tokens
    for sample in source.samples:
        assert sample.begins
        assert sample.ends
        trained = [piece.text for piece in sample.pieces if piece.trained]
        assert trained[-1] == "<|im_end|>"
        assert "<|im_start|>" not in trained
        rows = (json.loads(line)["messages"] for line in (here / "chats.jsonl").read_text().splitlines())
        said = {"".join(m["content"] for m in messages if m["role"] == "assistant") for messages in rows}
        assert "".join(text for text in trained if text != "<|im_end|>") in said
    assert any("conversations are written as 'chatml'" in line for line in findings.warnings)


def test_a_set_that_hardly_fits_is_refused(here: Path) -> None:
    findings = checked(write_finetuning(here, "lora", model={"seq_length": 24}))
    (problem,) = [line for line in findings.problems if "longer than model.seq_length 24" in line]
    assert "cut at a turn" in problem
    assert checked(write_finetuning(here, "lora", model={"seq_length": 110})).problems == []


def test_a_template_that_does_not_fit_is_a_problem(here: Path) -> None:
    findings = checked(write_finetuning(here, "lora", data={"template": "model"}))
    (problem,) = findings.problems
    assert problem.startswith("data.template: chat template 'model'")
