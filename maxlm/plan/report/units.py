"""Memory, and the few figures of a plan that `maxlm.train.quantities` has no word for.

Memory is counted in powers of 1024 here, as chips' capacities are; bytes on a wire in powers of
1000, as links' bandwidths are.
"""

from __future__ import annotations

from maxlm.train import quantities as q

UNKNOWN = q.UNKNOWN


def memory_size(value: float | None) -> str:
    """`56.6 GiB`, `12.3 MiB`, `512 B`."""
    if value is None:
        return UNKNOWN
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(value) >= 0.95 * scale:
            return f"{value / scale:,.1f} {unit}"
    return f"{value:.0f} B"


def share(part: float, whole: float) -> str:
    """`6.6%` of the whole; nothing of nothing is 0."""
    return q.percent(part / whole if whole else 0.0)


def step_seconds(value: float | None) -> str:
    """Seconds of one step or a part of it: `3.17 s`, `0.210 s`, `4.31 ms`, `8.2 µs`."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0 s"
    if value < 1e-3:
        return f"{1e6 * value:.1f} µs"
    return f"{value:.3f} s" if 0.01 <= value < 1 else q.duration(value)


def dollars(value: float | None) -> str:
    """`$1,690,000` to three digits, cents only below ten dollars."""
    if value is None:
        return UNKNOWN
    if abs(value) < 10:
        return f"${value:.2f}"
    return f"${float(f'{value:.3g}'):,.0f}"


def days(value: float | None) -> str:
    """`262 days`, `1.4 days`, `3 h 05 min` under a day."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return q.duration(value * 86400)
    return f"{value:,.0f} days" if value >= 100 else f"{value:.3g} days"
