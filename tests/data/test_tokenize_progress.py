"""What is shown while text is tokenized."""

from __future__ import annotations

import io

import pytest

from maxlm.data.tokenize import progress
from maxlm.data.tokenize.progress import ProgressDisplay, describe_progress, format_seconds
from maxlm.data.tokenize.run import TokenizeProgress
from maxlm.data.tokenize.unit import Counts


def test_rates_are_of_this_run_and_the_time_left_of_the_rest() -> None:
    state = TokenizeProgress(100_000_000, 40_000_000, Counts(1234, 5_000_000, 20_000_000))
    line, share = describe_progress(state, 10.0)
    assert line == "1,234 documents, 5.0 M tokens, 500,000 tokens/s, 2.0 MB/s, about 20 s left"
    assert share == 0.6


def test_without_progress_the_time_left_is_unknown_and_it_never_says_all_is_done() -> None:
    line, share = describe_progress(TokenizeProgress(100), 3.0)
    assert line.endswith("unknown time left")
    assert share == 0
    assert describe_progress(TokenizeProgress(100, 0, Counts(1, 1, 300)), 3.0)[1] == 0.99


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "about 5 s"), (720, "about 12 min"), (12_600, "about 3.5 h")]
)
def test_times_are_said_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_off_a_terminal_lines_come_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with ProgressDisplay(stream) as display:
        for second in range(25):
            now[0] = float(second)
            display(TokenizeProgress(100, 0, Counts(second, second, second)))
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["10%", "20%"]


def test_on_a_terminal_it_is_drawn_live() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with ProgressDisplay(stream) as display:
        display(TokenizeProgress(100, 0, Counts(7, 50, 50)))
    assert "7 documents" in stream.getvalue()
