"""The curves of the report: which columns of the metrics are drawn, and how."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from lmloop.training import charts
from lmloop.training.charts import Series
from lmloop.training.run_files import Metrics


def loss_chart(metrics: Metrics) -> Markup:
    """Training loss, raw and smoothed, and validation loss with its best; marks where updates were skipped."""
    x, y = metrics.points("loss")
    val_x, val_y = metrics.points("val_loss")
    series = []
    if len(y) > 50:
        series = [Series("each line", x, y, "raw"), Series("training (smoothed)", x, charts.smooth(y))]
    elif len(y):
        series = [Series("training", x, y)]
    best = None
    if len(val_y):
        series.append(Series("validation", val_x, val_y, "validation"))
        index = int(np.argmin(val_y))
        best = (float(val_x[index]), float(val_y[index]))
    marks = _skipped_at(metrics)
    return charts.line_chart(
        "Loss",
        series,
        unit="nats per token",
        y_limits=_loss_limits(series),
        best=best,
        marks=marks,
        mark_label="update skipped, not finite",
        note="Cross-entropy in nats per token.",
        tall=True,
    )


def _loss_limits(series: list[Series]) -> tuple[float, float] | None:
    """Without the first steps' height, which would press everything that matters into the lowest part of the chart."""
    if not series:
        return None
    highest = max(float(np.quantile(s.y, 0.97)) if len(s.y) > 50 else float(s.y.max()) for s in series if s.kind != "raw")
    return min(float(s.y.min()) for s in series), highest


def _skipped_at(metrics: Metrics) -> list[float]:
    """Tokens at which the count of skipped updates rose."""
    x, skipped = metrics.points("skipped")
    return [float(v) for v in x[np.flatnonzero(np.diff(skipped, prepend=0.0) > 0)]] if len(x) else []


def small_charts(metrics: Metrics) -> list[Markup]:
    """Learning rate, gradient norm, speed; row length and memory where they change."""
    made = []
    x, rate = metrics.points("lr")
    if len(rate):
        limits = (0.0, float(rate.max()))
        made.append(charts.line_chart("Learning rate", [Series("learning rate", x, rate)], y_limits=limits))
    x, norm = metrics.points("grad_norm")
    if len(norm):
        high = float(np.quantile(norm, 0.99)) if len(norm) > 50 else float(norm.max())
        made.append(charts.line_chart("Gradient norm", _raw_and_smooth("gradient norm", x, norm), y_limits=(0.0, high)))
    x, speed = metrics.points("tokens_per_s")
    if len(speed):
        limits = (0.0, float(speed.max()))
        made.append(charts.line_chart("Tokens per second", _raw_and_smooth("tokens/s", x, speed), y_limits=limits))
    for column, title in (("seq_len", "Row length in tokens"), ("memory_bytes", "Memory in GB")):
        x, y = metrics.points(column)
        if len(y) > 1 and float(y.max()) > 1.02 * float(y.min()):
            series = Series("row length", x, y, "step") if column == "seq_len" else Series("memory", x, y / 1e9)
            made.append(charts.line_chart(title, [series], y_limits=(0.0, float(series.y.max()))))
    return [chart for chart in made if chart]


def _raw_and_smooth(label: str, x: np.ndarray, y: np.ndarray) -> list[Series]:
    if len(y) <= 50:
        return [Series(label, x, y)]
    return [Series("each line", x, y, "raw"), Series("smoothed", x, charts.smooth(y))]
