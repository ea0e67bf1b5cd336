"""Where the wall time of training goes: compute, data wait, save wait, evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("data_wait", "save_wait", "eval")


class Clock:
    """Seconds per part since the last `split`; what no part claims is compute."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._last = self.started
        self._parts = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block as `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] += time.perf_counter() - start

    def split(self) -> dict[str, float]:
        """Seconds since the last split: `total`, `compute` and each part; starts the next."""
        now = time.perf_counter()
        total = now - self._last
        parts, self._parts, self._last = self._parts, dict.fromkeys(PARTS, 0.0), now
        compute = max(total - sum(parts.values()), 0.0)
        return {"total": total, "compute": compute, **parts}

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.started
