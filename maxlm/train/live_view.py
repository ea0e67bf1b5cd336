"""The live part of the display: a bar and the newest numbers, redrawn in place by rich.

Reads the `Progress` that the display keeps. Drawn by rich's own thread twice a second, so the loop
pays nothing for it; fits itself to the terminal's width at every draw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maxlm.train import quantities as q
from maxlm.train.progress import Progress

DRAWS_PER_SECOND = 2


class LiveView:
    """Draws `progress` on the terminal behind `stream`."""

    def __init__(self, progress: Progress, stream: IO[str]):
        self._progress = progress
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=DRAWS_PER_SECOND,
            vertical_overflow="crop",
        )
        self.is_open = False

    def open(self) -> None:
        """Begin to draw."""
        self._live.start()
        self.is_open = True

    def say(self, text: str) -> None:
        """Print one line above the live part; a long one is wrapped under its own beginning."""
        match = re.match(r"\s*(│ |[\w ]{9} (?=\S))?", text) if text.startswith("  ") else None
        head = match[0] if match else ""
        hang = head if "│" in head else " " * len(head)
        body = Text(text[len(head) :])
        lines = body.wrap(self._console, max(20, self._console.width - len(head)))
        for index, line in enumerate(lines or [body]):
            self._console.print(Text((hang if index else head) + line.plain), soft_wrap=True)

    def close(self) -> None:
        """Draw once more and leave the last state on the screen."""
        self.is_open = False
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the current state in `options.max_width` columns."""
        progress, width = self._progress, options.max_width
        lines: list[RenderableType] = [self._bar(width)]
        if not progress.newest:
            lines.append(Text(f"compiling the first step · {q.clock(progress.elapsed_seconds)}"))
        else:
            elapsed = f"{q.clock(progress.elapsed_seconds)} elapsed"
            lines += _fill(progress.learning(), width, "bold")
            lines += _fill([*progress.speed(), elapsed], width, "")
            lines += _fill(progress.validation(), width, "green")
        if progress.checkpoint_step is not None:
            lines += _fill([f"checkpoint of step {progress.checkpoint_step:,}"], width, "dim")
        yield Group(*lines)

    def _bar(self, width: int) -> Table:
        progress = self._progress
        left = progress.seconds_left
        share = progress.step / max(1, progress.total_steps)
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        steps = f"{progress.step:,}/{progress.total_steps:,}"
        grid.add_row(
            Text(steps if width < 50 else f"step {steps}", style="bold"),
            ProgressBar(total=max(1, progress.total_steps), completed=progress.step),
            Text(f"{100 * share:.0f}%" + ("" if left is None else f" · {q.clock(left)} left")),
        )
        return grid


def _fill(parts: Iterable[str], width: int, style: str) -> list[Text]:
    """Set `parts` in as few lines as hold them, broken between parts."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return [Text(line, style=style, no_wrap=True, overflow="ellipsis") for line in lines]
