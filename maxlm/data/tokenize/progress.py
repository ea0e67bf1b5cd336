"""Progress of tokenizing: a live bar on a terminal, a plain line every few seconds elsewhere.

In come `TokenizeProgress` states, as often as they change; out go documents, rates and the time left.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, Any

from maxlm.data.tokenize.run import TokenizeProgress

PLAIN_EVERY_SECONDS = 10.0


class ProgressDisplay:
    """Shows progress while it is open, as a context manager; call it with every state."""

    def __init__(self, stream: IO[str] | None = None):
        """Show on `stream`, by default standard error."""
        self._stream = stream or sys.stderr
        self._live: Any = None
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%  {task.description}"))
            console = Console(file=self._stream)
            self._live = Progress(*columns, console=console, transient=True)
            self._task = self._live.add_task("starting", total=1.0)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, state: TokenizeProgress) -> None:
        """Show a state."""
        now = time.monotonic()
        if self._live is None and now - self._shown < PLAIN_EVERY_SECONDS:
            return
        self._shown = now
        line, share = describe_progress(state, now - self._started)
        if self._live is not None:
            self._live.update(self._task, completed=share, description=line)
        else:
            print(f"{share:.0%}  {line}", file=self._stream, flush=True)


def describe_progress(state: TokenizeProgress, seconds: float) -> tuple[str, float]:
    """What to show after so many seconds of this run, and the share that is done."""
    done = state.done
    reached = min(state.reused_bytes + done.bytes, state.total_bytes)
    rate = done.bytes / max(seconds, 1e-9)
    left = (state.total_bytes - reached) / rate if rate else float("inf")
    line = (
        f"{done.documents:,} documents, {done.tokens / 1e6:,.1f} M tokens, "
        f"{done.tokens / max(seconds, 1e-9):,.0f} tokens/s, {rate / 1e6:.1f} MB/s, "
        f"{format_seconds(left)} left"
    )
    return line, min(reached / max(1, state.total_bytes), 0.99)


def format_seconds(seconds: float) -> str:
    """`about 5 s`, `about 12 min`, `about 3.5 h`."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
