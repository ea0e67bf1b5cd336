"""Where the wall time of training goes: compute, data wait, save wait, evaluation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("data_wait", "save_wait", "eval")


# The host sees steps finish in bursts (it dispatches ahead), so speed is taken over at least this.
SPEED_SECONDS = 2.0


class Speed:
    """Tokens per second and seconds per step over the last couple of seconds of training."""

    def __init__(self) -> None:
        self._parts: deque[tuple[int, int, float]] = deque()

    def add(self, steps: int, tokens: int, seconds: float) -> tuple[float, float]:
        """Count finished steps; returns tokens per second and seconds per step.

        Args:
            steps: steps since the last call.
            tokens: their tokens.
            seconds: their time, evaluation left out.
        """
        self._parts.append((steps, tokens, seconds))
        while sum(part[2] for part in list(self._parts)[1:]) >= SPEED_SECONDS:
            self._parts.popleft()
        all_steps, all_tokens, all_seconds = map(sum, zip(*self._parts, strict=True))
        return all_tokens / max(all_seconds, 1e-9), all_seconds / all_steps


class Clock:
    """Seconds per part since the last `split`; what no part claims is compute."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._last = self.started
        self._parts = dict.fromkeys(PARTS, 0.0)
        self.speed = Speed()

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
