"""Numbers as people read them: counts, durations, sizes, and the ticks of an axis."""

from __future__ import annotations

import itertools
import math

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """A count in three figures: 950, 8,240, 46.2 M, 1.23 B."""
    if abs(number) < 9_999.5:
        return f"{number:,.0f}"
    return _scaled(number)


def _scaled(number: float) -> str:
    for index, (scale, suffix) in enumerate(_SCALES):
        if abs(number) >= scale:
            value = float(f"{number / scale:.3g}")
            if abs(value) >= 1000 and index > 0:  # 999,950 reads 1 M, not 1000 k
                value, suffix = value / 1000, _SCALES[index - 1][1]
            return f"{value:.4g} {suffix}"
    return f"{number:.3g}"


def value(number: float) -> str:
    """A measured value in four figures: 1.842, 0.0312, 6.1e-4, 12.3 k."""
    size = abs(number)
    if number == 0:
        return "0"
    if size < 1e-3:
        return exponent(number)
    return _scaled(number) if size >= 9_999.5 else f"{number:.4g}"


def exponent(number: float) -> str:
    """Two figures and a power of ten, without the zeros that `%e` pads with: 6.1e-4."""
    mantissa, power = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def duration(seconds: float) -> str:
    """A time in its two leading units: 0.4 s, 48 s, 3 min 20 s, 1 h 20 min, 2 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, below, below_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {name}" + (f" {rest} {below_name}" if rest else "")
    return f"{whole} s"


def size(number_bytes: float) -> str:
    """A number of bytes: 512 B, 38 MB, 1.24 GB (powers of 1,000)."""
    for scale, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number_bytes >= scale:
            return f"{number_bytes / scale:.3g} {suffix}"
    return f"{number_bytes:.0f} B"


def percent(share: float) -> str:
    """A share of 1: 46.2 %, 0.04 %, 100 %."""
    hundredths = 100 * share
    if hundredths and abs(hundredths) < 0.1:
        return f"{hundredths:.2f} %"
    return f"{hundredths:.1f} %".replace(".0 %", " %")


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    assert high > low, (low, high)
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """Labels for the ticks of one axis, all with the same number of decimals and the same scale."""
    if not values:
        return []
    largest = max(abs(v) for v in values)
    step = min((b - a for a, b in itertools.pairwise(values)), default=largest or 1.0)
    if 0 < largest < 1e-2:
        return ["0" if v == 0 else exponent(v) for v in values]
    scale, suffix = next(((s, f" {n}") for s, n in _SCALES if largest >= s and largest >= 9_999.5), (1.0, ""))
    decimals = next(d for d in range(7) if d == 6 or abs(round(step / scale, d) - step / scale) < 1e-3 * step / scale)
    return ["0" if v == 0 else f"{v / scale:,.{decimals}f}{suffix}" for v in values]
