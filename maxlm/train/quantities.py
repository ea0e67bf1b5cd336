"""Numbers as people read them: counts, bytes, durations; the same on the terminal and on the page.

In come plain numbers, or None and NaN for what is not known; out goes short text.
"""

from __future__ import annotations

import math

UNKNOWN = "–"


def count(value: float | None, digits: int = 3) -> str:
    """`1.54M`, `12.3k`, `960`: a count with `digits` significant digits from a thousand on."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,999 rounds to 1.00M, not to 1000k
        if abs(value) >= size * (1 - 0.5 * 10.0**-digits):
            return f"{_significant(value / size, digits)}{unit}"
    return f"{value:.0f}" if value == int(value) else _significant(value, digits)


def size(value: float | None) -> str:
    """`9.6 MB`, `12.1 GB`: bytes in powers of 1000 (as disks and object stores count them)."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{_significant(value / scale, 3)} {unit}"
    return f"{value:.0f} B"


def clock(seconds: float | None) -> str:
    """`0:43`, `1:02:03`, `2d 03:04`: a running time."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float | None) -> str:
    """`61.2 ms`, `2 min 41 s`, `3 h 05 min`, `2 d 3 h`: a duration in words."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 1:
        return f"{_significant(seconds * 1000, 3)} ms"
    if seconds < 59.95:
        return f"{_significant(seconds, 3)} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def percent(fraction: float | None) -> str:
    """`41.2%` of a fraction."""
    if fraction is None or not math.isfinite(fraction):
        return UNKNOWN
    return f"{100 * fraction:.1f}%"


def number(value: float | None, digits: int = 4) -> str:
    """A measured value: `1.843`, `3e-04`, `nan`."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 10.0**digits else _significant(value, digits)
    return f"{value:.{max(0, digits - 2)}e}"


def _significant(value: float, digits: int) -> str:
    # The exponent after rounding: 0.9999 has as many decimals as 1.000.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"
