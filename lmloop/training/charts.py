"""Charts of the report: line charts, stacked bars and a stacked area, as HTML with inline SVG.

Our own, because the report is one small file that must work without a network and on a phone. The SVG holds only lines
and is stretched to whatever width there is; every piece of text is HTML beside it, so that it keeps its size. The points
are in the page a second time, as JSON, for the values under the pointer.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from lmloop.training import figures

MAX_POINTS = 600
"""Points of a curve, at most."""

_UNITS = 1000  # width and height of the SVG's own coordinates


@dataclass(frozen=True)
class Series:
    """One curve: faint (`raw`), plain, of evaluations, or one whose value holds until its next point (`step`)."""

    label: str
    x: np.ndarray
    y: np.ndarray
    kind: Literal["raw", "line", "validation", "step"] = "line"

    def __post_init__(self) -> None:
        assert self.x.shape == self.y.shape, (self.x.shape, self.y.shape)


def downsample(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` of the points, in order: the ends, and the lowest and highest of each stretch between them.

    Unlike picking every n-th point this keeps every spike that can be seen at that width.
    """
    assert limit >= 4, limit
    if len(x) <= limit:
        return x, y
    edges = np.linspace(1, len(x) - 1, (limit - 2) // 2 + 1).astype(int)
    kept = [0]
    for start, end in itertools.pairwise(edges):
        pair = {start + int(np.argmin(y[start:end])), start + int(np.argmax(y[start:end]))}
        kept.extend(sorted(pair))
    kept.append(len(x) - 1)
    return x[kept], y[kept]


def step_points(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points where a piecewise constant curve changes, and its ends."""
    if len(x) < 3:
        return x, y
    changed = np.flatnonzero(np.diff(y) != 0) + 1
    kept = np.unique(np.concatenate(([0], changed, [len(x) - 1])))
    return x[kept], y[kept]


def smooth(y: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Centred moving average over `share` of the points, at least five; the window is cut at the ends. No NaN in `y`."""
    half = max(int(len(y) * share / 2), 2)
    total = np.concatenate(([0.0], np.cumsum(y)))
    index = np.arange(len(y))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    y_limits: tuple[float, float] | None = None,
    best: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
    mark_label: str = "",
    note: str = "",
    tall: bool = False,
) -> Markup:
    """A chart of curves over trained tokens.

    `best` is a point to mark, `marks` are places on the token axis where something happened (`mark_label` says what),
    `y_limits` cuts what lies outside and says so. A series of one point is a dot. Empty if no series has a point.
    """
    thin = [_thin(s) for s in series if len(s.x)]
    if not thin:
        return Markup("")
    x_low, reached = 0.0, max(float(s.x[-1]) for s in thin) or 1.0
    x_high = 1.012 * reached  # room for the mark of the last point
    lowest, highest = min(float(s.y.min()) for s in thin), max(float(s.y.max()) for s in thin)
    y_low, y_high = _limits(*(y_limits or (lowest, highest)))
    x_ticks = figures.ticks(x_low, reached, 5)
    y_ticks = figures.ticks(y_low, y_high, 5 if tall else 4)
    cut = [w for w in (_cut(highest, y_high, "up"), _cut(-lowest, -y_low, "down")) if w]

    def px(x: float) -> float:
        return (x - x_low) / (x_high - x_low)

    def py(y: float) -> float:
        return (y - y_low) / (y_high - y_low)

    grid = "".join(f"M0 {_u(1 - py(y))}H{_UNITS}" for y in y_ticks)
    paths = [Markup('<path class="grid" d="{}"/>').format(grid)]
    if marks:
        ends = "".join(f"M{_u(px(x))} {_UNITS}v-45" for x in list(marks)[:MAX_POINTS])
        paths.append(Markup('<path class="marks" d="{}"/>').format(ends))
    for s in thin:
        path = _path([_u(px(x)) for x in s.x], [_u(1 - py(y)) for y in s.y], step=s.kind == "step")
        paths.append(Markup('<path class="curve {}" d="{}"/>').format(s.kind, path))
        if s.kind == "validation" and len(s.x) <= 60:
            dots = "".join(f"M{_u(px(x))} {_u(1 - py(y))}h0" for x, y in zip(s.x, s.y, strict=True))
            paths.append(Markup('<path class="curve dots {}" d="{}"/>').format(s.kind, dots))
    if best:
        at = f"M{_u(px(best[0]))} {_u(1 - py(best[1]))}h0"
        paths.append(Markup('<path class="best-rim" d="{}"/><path class="best" d="{}"/>').format(at, at))
    data = {
        "x": [x_low, x_high],
        "y": [y_low, y_high],
        "unit": unit,
        "series": [
            {"label": s.label, "kind": s.kind, "x": [float(f"{v:.6g}") for v in s.x], "y": [float(f"{v:.4g}") for v in s.y]}
            for s in thin
        ],
    }
    legend = [_legend(s.kind, s.label) for s in thin if len(thin) > 1]
    if best:
        legend.append(_legend("best", f"best: {figures.value(best[1])}"))
    if marks:
        legend.append(_legend("marks", mark_label))
    summary = f"{title} over {figures.count(reached)} tokens. " + " ".join(_in_words(s, unit) for s in thin)
    return Markup(
        '<figure class="chart{tall}">'
        '<figcaption><h3>{title}</h3><span class="legend">{legend}</span></figcaption>'
        '<div class="readout" aria-hidden="true">{at_end}</div>'
        '<div class="frame"><div class="y-axis" aria-hidden="true">{y_axis}</div>'
        '<div class="plot" tabindex="0" role="img" aria-label="{summary}">'
        '<svg viewBox="0 0 {u} {u}" preserveAspectRatio="none" aria-hidden="true" focusable="false">{paths}</svg></div>'
        '<div class="x-axis" aria-hidden="true">{x_axis}</div></div>'
        '{note}<script type="application/json">{data}</script></figure>'
    ).format(
        tall=" tall" if tall else "",
        title=title,
        legend=Markup("").join(legend),
        summary=summary,
        at_end=_at_end(thin, unit),
        u=_UNITS,
        paths=Markup("").join(paths),
        y_axis=Markup("").join(
            Markup('<span style="top:{}%">{}</span>').format(f"{100 * (1 - py(y)):.2f}", label)
            for y, label in zip(y_ticks, figures.tick_labels(y_ticks), strict=True)
        ),
        x_axis=_x_axis(x_ticks, x_high),
        note=_note(" ".join([note, *cut]).strip()),
        data=_json(data),
    )


def area_chart(title: str, x: np.ndarray, shares: Sequence[tuple[str, np.ndarray]], bins: int = 80) -> Markup:
    """Shares that add up to 1, stacked, over tokens `x`; each of up to `bins` columns is a mean. Empty below two points."""
    if len(x) < 2 or not shares:
        return Markup("")
    edges = np.unique(np.linspace(0, len(x), min(bins, len(x)) + 1).astype(int))
    starts, widths = edges[:-1], np.diff(edges)
    places = [0.0, *(float(v) for v in x[edges[1:] - 1])]
    floor = np.zeros(len(starts))
    high = float(x[-1]) or 1.0
    paths = []
    for index, (_, share) in enumerate(shares):
        top = floor + np.add.reduceat(share, starts) / widths
        upper = "".join(f"L{_u(a / high)} {_u(1 - t)}H{_u(b / high)}" for a, b, t in _steps(places, top))
        lower = "".join(f"L{_u(b / high)} {_u(1 - t)}H{_u(a / high)}" for a, b, t in reversed(_steps(places, floor)))
        paths.append(Markup('<path class="area c{}" d="M{}{}Z"/>').format(index % 8, (upper + lower)[1:], ""))
        floor = top
    return Markup(
        '<figure class="chart area-chart"><figcaption><h3>{title}</h3></figcaption>'
        '<div class="frame"><div class="y-axis" aria-hidden="true"><span style="top:0%">100 %</span>'
        '<span style="top:50%">50 %</span><span style="top:100%">0</span></div>'
        '<div class="plot still" role="img" aria-label="{label}">'
        '<svg viewBox="0 0 {u} {u}" preserveAspectRatio="none" aria-hidden="true" focusable="false">{paths}</svg></div>'
        '<div class="x-axis" aria-hidden="true">{x_axis}</div></div></figure>'
    ).format(
        title=title,
        label=f"{title} over {figures.count(high)} tokens, {len(shares)} parts.",
        u=_UNITS,
        paths=Markup("").join(paths),
        x_axis=_x_axis(figures.ticks(0, high, 5), high),
    )


def stacked_bar(label: str, parts: Sequence[tuple[str, float, str]]) -> Markup:
    """One bar of (name, amount, amount in words), with a legend that carries the same numbers as text."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return Markup("")
    bar, rows = [], []
    for index, (name, amount, words) in enumerate(parts):
        share = amount / total
        colour = index % 8
        bar.append(Markup('<span class="c{}" style="flex-grow:{}"></span>').format(colour, f"{share:.4f}"))
        rows.append(
            Markup('<li><span class="key c{}"></span><span class="name">{}</span><b>{}</b><span>{}</span></li>').format(
                colour, name, figures.percent(share), words
            )
        )
    return Markup('<div class="bar" role="img" aria-label="{}">{}</div><ul class="parts">{}</ul>').format(
        label, Markup("").join(bar), Markup("").join(rows)
    )


def _thin(series: Series) -> Series:
    x, y = step_points(series.x, series.y) if series.kind == "step" else (series.x, series.y)
    return Series(series.label, *downsample(x, y), series.kind)


def _limits(low: float, high: float) -> tuple[float, float]:
    """With a little room above and below, and never empty."""
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _cut(extreme: float, limit: float, direction: str) -> str:
    return f"Outside the chart the curve goes {direction} to {figures.value(abs(extreme))}." if extreme > limit else ""


def _path(xs: Sequence[str], ys: Sequence[str], *, step: bool) -> str:
    if len(xs) == 1:
        return f"M{xs[0]} {ys[0]}h0"
    if step:
        return f"M{xs[0]} {ys[0]}" + "".join(f"H{x}V{y}" for x, y in zip(xs[1:], ys[1:], strict=True))
    return "M" + "L".join(f"{x} {y}" for x, y in zip(xs, ys, strict=True))


def _steps(places: list[float], levels: np.ndarray) -> list[tuple[float, float, float]]:
    return [(places[i], places[i + 1], float(level)) for i, level in enumerate(levels)]


def _x_axis(places: Sequence[float], high: float) -> Markup:
    spans = []
    for place, label in zip(places, figures.tick_labels(list(places)), strict=True):
        share = place / high
        side = " class=end" if share > 0.93 else ""
        spans.append(Markup(f'<span{side} style="left:{100 * share:.2f}%">') + label + Markup("</span>"))
    return Markup("").join(spans)


def _legend(kind: str, label: str) -> Markup:
    return Markup('<span class="entry"><i class="{}"></i>{}</span>').format(kind, label)


def _note(text: str) -> Markup:
    return Markup('<p class="note">{}</p>').format(text) if text else Markup("")


def _in_words(series: Series, unit: str) -> str:
    first, last, lowest = (figures.value(float(y)) for y in (series.y[0], series.y[-1], series.y.min()))
    return f"{series.label}: from {first} to {last}{' ' + unit if unit else ''}, lowest {lowest}."


def _at_end(series: Sequence[Series], unit: str) -> str:
    """What is read below the title until somebody points at the chart."""
    shown = [s for s in series if s.kind != "raw"] or list(series)
    values = [
        f"{s.label} {figures.value(float(s.y[-1]))}" if len(shown) > 1 else figures.value(float(s.y[-1])) for s in shown
    ]
    return f"at the end: {' · '.join(values)}{' ' + unit if unit and len(shown) == 1 else ''}"


def _json(data: object) -> Markup:
    """JSON that cannot end its script element."""
    text = json.dumps(data, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _u(share: float) -> str:
    """A share of the plot in the SVG's coordinates; far outside is as good as outside."""
    units = _UNITS * min(max(share, -5.0), 6.0)
    assert math.isfinite(units), share
    return f"{units:.1f}".removesuffix(".0")
