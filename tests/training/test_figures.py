import itertools

import pytest

from lmloop.training import figures


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (950, "950"),
        (8_240, "8,240"),
        (12_345, "12.3 k"),
        (999_950, "1 M"),
        (46_200_000, "46.2 M"),
        (1.234e9, "1.23 B"),
    ],
)
def test_count(number: float, words: str) -> None:
    assert figures.count(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.0, "0"), (1.84249, "1.842"), (0.0312, "0.0312"), (6.1e-4, "6.1e-4"), (1e-4, "1e-4"), (12_345.0, "12.3 k")],
)
def test_value(number: float, words: str) -> None:
    assert figures.value(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.44, "0.4 s"),
        (9.97, "10 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (4_800, "1 h 20 min"),
        (187_200, "2 d 4 h"),
        (3_600, "1 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert figures.duration(seconds) == words


@pytest.mark.parametrize(("share", "words"), [(0.0, "0 %"), (0.462, "46.2 %"), (0.0004, "0.04 %"), (1.0, "100 %")])
def test_percent(share: float, words: str) -> None:
    assert figures.percent(share) == words


@pytest.mark.parametrize(("low", "high"), [(0.0, 983e6), (1.2, 1.31), (-0.5, 0.5), (0.0, 1e-3), (0.0, 7.0)])
def test_ticks_are_round_within_the_range_and_evenly_spaced(low: float, high: float) -> None:
    ticks = figures.ticks(low, high, 5)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 * abs(high) <= tick <= high * (1 + 1e-9) for tick in ticks)
    step = ticks[1] - ticks[0]
    assert [b - a for a, b in itertools.pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1))
    assert float(f"{step:.2g}") == pytest.approx(step)
    labels = figures.tick_labels(ticks)
    assert len(set(labels)) == len(ticks)


def test_tick_labels_share_scale_and_decimals() -> None:
    assert figures.tick_labels([0.0, 2.5e6, 5e6]) == ["0", "2.5 M", "5.0 M"]
    assert figures.tick_labels([0.0, 5e-4, 1e-3]) == ["0", "5e-4", "1e-3"]
    assert figures.tick_labels([1.0, 1.5, 2.0]) == ["1.0", "1.5", "2.0"]
