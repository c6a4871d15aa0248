"""How often the data is read, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.check.budget import budget_of
from lmloop.check.counts import PartCounts
from lmloop.preset.schema import Preset

SOURCES = [{"type": "files", "path": "a"}, {"type": "files", "path": "b", "weight": 3}]


def preset(data: dict[str, Any], **train: Any) -> Preset:
    return Preset.model_validate(
        {
            "name": "p",
            "model": {"seq_length": 10, "hidden_size": 16, "num_heads": 2},
            "data": {"sources": SOURCES, **data},
            "train": {"per_gpu_batch_size": 5, "accumulation_steps": 2, **train},
        }
    )


def part(name: str, trained: int, progress: float = 1.0) -> PartCounts:
    return PartCounts(name, "train", trained_tokens=trained, complete=progress == 1.0, progress=progress)


A, B = part("a", 1_000), part("b", 4_000)

CASES: list[tuple[dict[str, Any], dict[str, Any], int, int, float, dict[str, float]]] = [
    # 100 tokens an update
    ({}, {"max_steps": 100}, 10_000, 100, 2.0, {"a": 5.0, "b": 1.25}),
    ({}, {"num_tokens": 10_050}, 10_050, 101, 2.01, {"a": 5.025, "b": 1.25625}),
    ({"mix_strategy": "weighted"}, {"max_steps": 100}, 10_000, 100, 2.0, {"a": 2.5, "b": 1.875}),
    # one pass is a, b, b, b: 13,000 tokens
    ({"mix_strategy": "sequential"}, {"max_steps": 130}, 13_000, 130, 2.6, {"a": 1.0, "b": 3.0}),
    ({"mix_strategy": "sequential"}, {"epochs": 2}, 26_000, 260, 5.2, {"a": 2, "b": 6}),
    ({"mix_strategy": "weighted"}, {"epochs": 3}, 15_000, 150, 3.0, {"a": 3, "b": 3}),
    ({}, {}, 100_000_000, 1_000_000, 20_000.0, {"a": 50_000.0, "b": 12_500.0}),
]


@pytest.mark.parametrize(("data", "train", "tokens", "steps", "passes", "by_source"), CASES)
def test_passes(
    data: dict[str, Any], train: dict[str, Any], tokens: int, steps: int, passes: float, by_source: dict[str, float]
) -> None:
    budget = budget_of(preset(data, **train), [A, B])
    assert (budget.run_tokens, budget.steps, budget.data_tokens) == (tokens, steps, 5_000)
    assert budget.passes == pytest.approx(passes)
    assert budget.passes_by_source == pytest.approx(by_source)
    assert not budget.estimated


def test_a_part_that_was_read_is_extrapolated() -> None:
    budget = budget_of(preset({}, max_steps=100), [A, part("b", 1_000, progress=0.25)])
    assert budget.data_tokens == 5_000
    assert budget.passes == pytest.approx(2.0)
    assert budget.estimated


def test_of_a_stream_nothing_is_known() -> None:
    budget = budget_of(preset({}, max_steps=100), [A, part("b", 4_000, progress=0.0)])
    assert (budget.data_tokens, budget.passes) == (None, None)
    assert budget.passes_by_source == {"a": 5.0, "b": None}
    assert (budget.run_tokens, budget.steps) == (10_000, 100)
    epochs = budget_of(preset({}, epochs=2), [A, part("b", 4_000, progress=0.0)])
    assert (epochs.run_tokens, epochs.steps, epochs.passes) == (None, None, None)
    assert epochs.passes_by_source == {"a": 2, "b": 2}


def test_nothing_to_train_divides_by_nothing() -> None:
    budget = budget_of(preset({}, max_steps=100), [part("a", 0), part("b", 0)])
    assert budget.passes_by_source == {"a": None, "b": None}
    assert budget_of(preset({"mix_strategy": "sequential"}, epochs=2), [part("a", 0), part("b", 0)]).run_tokens == 0


def test_rows_of_conversations_hold_fewer_trained_tokens_than_positions() -> None:
    chats = PartCounts("a", "train", trained_tokens=900, rows=300, complete=True)  # 3 trained tokens of 10 in a row
    data = {"sources": SOURCES[:1]}
    steps, epochs = (budget_of(preset(data, **train), [chats]) for train in ({"max_steps": 60}, {"epochs": 2}))
    assert (steps.tokens_per_step, steps.run_tokens, steps.passes) == (30, 1_800, pytest.approx(2.0))
    assert (epochs.run_tokens, epochs.steps) == (1_800, 60)
