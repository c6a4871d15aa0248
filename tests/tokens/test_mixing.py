from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmloop.preset.schema import DataSection
from lmloop.preset.sources import FilesSource
from lmloop.tokens.mixing import interleave, lane_weights

weights = st.lists(st.sampled_from([0.1, 1 / 3, 0.5, 1.0, 2.0, 3.7, 250.0]), min_size=1, max_size=5)


def one_by_one(taken: list[int], weights: list[float], count: int) -> list[int]:
    """The same order, a row at a time."""
    taken, order = list(taken), []
    for _ in range(count):
        best = min(range(len(weights)), key=lambda i: ((taken[i] + 0.5) / weights[i], i))
        taken[best] += 1
        order.append(best)
    return order


@given(weights=weights, count=st.integers(1, 60), data=st.data())
@settings(max_examples=200, deadline=None)
def test_order_is_that_of_one_row_at_a_time(weights: list[float], count: int, data: st.DataObject) -> None:
    taken = [data.draw(st.integers(0, 40)) for _ in weights]
    assert interleave(taken, weights, count).tolist() == one_by_one(taken, weights, count)


def test_equal_weights_are_plain_turns() -> None:
    assert interleave([0, 0, 0], [1.0, 1.0, 1.0], 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


@given(weights=weights)
@settings(deadline=None)
def test_shares_follow_the_weights_at_any_moment(weights: list[float]) -> None:
    order = interleave([0] * len(weights), weights, 500)
    for index, weight in enumerate(weights):
        due = np.arange(1, 501) * weight / sum(weights)
        assert np.abs(np.cumsum(order == index) - due).max() <= len(weights)


def test_weights_come_from_the_preset_by_name() -> None:
    sources = [FilesSource(path="a", weight=3.0), "wikipedia", FilesSource(path="b", weight=0.5)]
    weighted = DataSection(sources=sources, mix_strategy="weighted")
    assert lane_weights(weighted, ["a", "wikipedia", "b"]) == [3.0, 1.0, 0.5]
    assert lane_weights(weighted, ["a", "b"]) == [3.0, 0.5]  # one was dropped
    by_name = DataSection(sources=sources, mix_strategy="weighted", source_weights={"b": 7.0})
    assert lane_weights(by_name, ["a", "b"]) == [3.0, 7.0]
    assert lane_weights(DataSection(sources=sources), ["a", "b"]) == [1.0, 1.0]


def test_readings_are_whole() -> None:
    section = DataSection(sources=["wikipedia", "c4"], mix_strategy="sequential", source_weights=[1.5, 1.0])
    with pytest.raises(ValueError, match=r"1\.5 of 'wikipedia'"):
        lane_weights(section, ["wikipedia", "c4"])
