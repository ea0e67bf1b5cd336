"""What a person sees while a run trains: a live display on a terminal, plain lines elsewhere.

In come the records that also go to the sinks (`Display` is a sink); out goes text to stdout. What
runs is told at the start, and the last line, `maxlm-result {json}`, is for programs to read. The
loop pays for keeping the newest record; drawing happens in a thread, twice a second. A terminal
that goes away (a closed pipe, a lost connection) ends the display, never the run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO, Any

from maxlm.train import quantities as q
from maxlm.train.progress import Progress, printable
from maxlm.train.sinks import plain


class Display:
    """Shows a run's records.

    Args:
        run: the run folder, as the user knows it.
        stream: where to write; stdout by default.
        live: whether to draw in place; by default when the stream is a terminal that can.
        every_seconds: between two plain lines.
    """

    def __init__(
        self,
        run: str,
        *,
        stream: IO[str] | None = None,
        live: bool | None = None,
        every_seconds: float = 10.0,
    ):
        self._stream = stream if stream is not None else sys.stdout
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="replace")  # a C locale must not end a run
        self._progress = Progress(run)
        self._every_seconds = every_seconds
        self._said_at = -float("inf")
        self._gone = False
        self._view: Any = None
        if _can_draw(self._stream) if live is None else live:
            from maxlm.train.live_view import LiveView

            self._view = LiveView(self._progress, self._stream)

    def write(self, record: dict[str, Any]) -> None:
        """Show any record, by its kind."""
        {
            "start": self.start,
            "train": self.train,
            "eval": self.eval,
            "sample": self.sample,
            "checkpoint": self.checkpoint,
            "end": self.end,
        }[record["kind"]](record)

    def start(self, record: dict[str, Any]) -> None:
        """Tell what runs, on what, for how long, and where it is saved."""
        self._progress.start(record)
        for line in self._progress.introduction():
            self.message(line)
        if self._view is not None:
            self._guard(self._view.open)

    def train(self, record: dict[str, Any]) -> None:
        """Take note of a train record; without a terminal, a line now and then."""
        skipped = self._progress.train(record)
        if skipped:
            self.message(
                f"step {record['step']:,}: {skipped} step{'s' * (skipped > 1)} skipped since the "
                "last record: gradients were not finite"
            )
        last = record["step"] == self._progress.total_steps
        now = time.monotonic()
        if self._view is None and (last or now - self._said_at >= self._every_seconds):
            self._said_at = now
            self.message("  ".join(self._progress.line()))

    def eval(self, record: dict[str, Any]) -> None:
        """Say what an evaluation found."""
        best = self._progress.eval(record)
        parts = [f"step {record['step']:,}: {record['set']} loss {q.number(record.get('loss'))}"]
        if record.get("bits_per_byte") is not None:
            parts.append(f"{q.number(record['bits_per_byte'])} bits/byte")
        if record.get("seconds") is not None:
            parts.append(f"in {q.duration(record['seconds'])}")
        self.message(", ".join(parts) + (" (best so far)" if best else ""))

    def sample(self, record: dict[str, Any]) -> None:
        """Show what the model writes."""
        self.message(f"step {record['step']:,}, a sample:")
        for line in f"{record['prompt']}{record['text']}".splitlines():
            self.message(f"  │ {line}")

    def checkpoint(self, record: dict[str, Any]) -> None:
        """Note that a save began; `Checkpoints` says when it is complete."""
        self._progress.checkpoint(record)

    def end(self, record: dict[str, Any]) -> None:
        """Say how the run ended, in words and in one line for programs."""
        self._stop_drawing()
        for line in self._progress.conclusion(record):
            self.message(line)
        result = json.dumps(plain(self._progress.result(record)), ensure_ascii=False)
        self._guard(lambda: self._print(f"maxlm-result {result}"))

    def message(self, text: str) -> None:
        """Show one line of text, above the live part if there is one."""
        text = printable(text)
        if self._view is not None:
            self._guard(lambda: self._view.say(text))
        else:
            self._guard(lambda: self._print(text))

    def flush(self) -> None:
        """Nothing to wait for: every line was flushed when it was written."""

    def close(self) -> None:
        """Give the terminal back. Safe to call twice, and after an error."""
        self._stop_drawing()

    def _stop_drawing(self) -> None:
        if self._view is not None and self._view.is_open:
            self._guard(self._view.close)

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _guard(self, act: Any) -> None:
        if self._gone:
            return
        try:
            act()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._gone = True


def _can_draw(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
