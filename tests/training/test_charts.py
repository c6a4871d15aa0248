import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lmloop.training import charts
from lmloop.training.charts import Series


class Tags(HTMLParser):
    """Collects start tags and fails on tags that do not nest."""

    void = frozenset({"path", "meta", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


def data_of(html: str) -> dict:
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_downsample_keeps_ends_order_and_every_spike() -> None:
    x = np.arange(100_000.0)
    y = np.zeros(100_000)
    y[54_321], y[77_777] = 9.0, -4.0
    thin_x, thin_y = charts.downsample(x, y, 600)
    assert len(thin_x) <= 600
    assert thin_x[0] == 0
    assert thin_x[-1] == 99_999
    assert (np.diff(thin_x) > 0).all()
    assert (thin_y.max(), thin_y.min()) == (9.0, -4.0)
    assert np.array_equal(thin_y, y[thin_x.astype(int)])


@pytest.mark.parametrize("points", [1, 2, 599, 600, 601, 602, 700, 1201])
def test_downsample_never_exceeds_the_limit(points: int) -> None:
    y = np.random.default_rng(0).normal(size=points)
    thin_x, _ = charts.downsample(np.arange(points, dtype=float), y, 600)
    assert len(thin_x) <= 600
    assert points > 600 or len(thin_x) == points


def test_smooth_is_a_moving_average() -> None:
    y = np.random.default_rng(1).normal(size=500)
    expected = [y[max(0, i - 5) : i + 6].mean() for i in range(500)]
    assert charts.smooth(y, share=0.02) == pytest.approx(expected)


def test_step_points_keep_changes_only() -> None:
    x, y = charts.step_points(np.arange(6.0), np.array([1.0, 1, 1, 4, 4, 4]))
    assert x.tolist() == [0, 3, 5]
    assert y.tolist() == [1, 4, 4]


def test_line_chart_draws_values_at_their_places() -> None:
    series = Series("validation", np.array([50.0, 100.0]), np.array([2.0, 1.0]), "validation")
    html = str(charts.line_chart("Loss", [series], y_limits=(0.0, 4.0)))
    Tags(html)
    path = re.search(r'class="curve validation" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', html)
    assert path
    x1, y1, x2, y2 = (float(v) for v in path.groups())
    data = data_of(html)
    assert x1 == pytest.approx(1000 * 50 / data["x"][1], abs=0.1)
    assert x2 == pytest.approx(1000 * 100 / data["x"][1], abs=0.1)
    low, high = data["y"]
    assert y1 == pytest.approx(1000 * (1 - (2 - low) / (high - low)), abs=0.1)
    assert y2 > y1


def test_a_chart_says_what_it_cuts_off() -> None:
    series = Series("loss", np.arange(1.0, 11.0), np.array([9.5, *[1.0] * 9]))
    assert "goes up to 9.5" in charts.line_chart("Loss", [series], y_limits=(0.9, 1.1))
    assert "goes up" not in charts.line_chart("Loss", [series])


@pytest.mark.parametrize(
    ("x", "y"),
    [([5.0], [1.0]), ([0.0], [0.0]), ([1.0, 2.0], [3.0, 3.0]), ([1.0, 2.0], [0.0, 0.0]), ([1.0, 2.0], [-1.0, -1.0])],
)
def test_degenerate_curves_are_drawn(x: list[float], y: list[float]) -> None:
    for kind in ("line", "step", "validation"):
        html = str(charts.line_chart("Flat", [Series("flat", np.array(x), np.array(y), kind)]))
        Tags(html)
        assert "nan" not in html.lower()


def test_no_points_no_chart() -> None:
    assert charts.line_chart("Loss", [Series("loss", np.array([]), np.array([]))]) == ""
    assert charts.stacked_bar("Time", []) == ""
    assert charts.area_chart("Mix", np.array([1.0]), [("a", np.array([1.0]))]) == ""


def test_names_are_escaped_everywhere() -> None:
    evil = '</script><script>alert("x")</script>'
    series = Series(evil, np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    html = charts.line_chart(evil, [series, series], note=evil)
    html += charts.stacked_bar(evil, [(evil, 1.0, evil)])
    html += charts.area_chart(evil, np.array([1.0, 2.0]), [(evil, np.array([1.0, 1.0]))])
    assert "<script>" not in html
    assert [tag for tag, _ in Tags(str(html)).seen].count("script") == 1
    assert data_of(str(html))["series"][0]["label"] == evil


def test_stacked_bar_says_the_shares_in_text() -> None:
    html = charts.stacked_bar("Time", [("training", 30.0, "30 s"), ("saving", 10.0, "10 s")])
    assert "75 %" in html
    assert "25 %" in html
    assert html.count('role="img"') == 1


def test_area_columns_are_stacked_to_the_top() -> None:
    html = charts.area_chart("Mix", np.arange(1.0, 5.0), [("a", np.full(4, 0.25)), ("b", np.full(4, 0.75))])
    first, second = re.findall(r'<path class="area c\d" d="M([^"]*)"', html)
    assert first.startswith("0 750H")
    assert second.startswith("0 0H")
