"""SIGTERM and Ctrl-C end training after the current step, with a checkpoint.

They end an evaluation too, between two of its batches. A second Ctrl-C ends everything at once. On
several processes all stop at the same step, and only there: an evaluation is done to its end.
"""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any

from maxlm.parallel.agreement import StopAgreement, process_count

# What launchers read as "run me again" (EX_TEMPFAIL of sysexits.h).
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class Interruption:
    """A context in which the signals only set a flag."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._agreement: StopAgreement | None = None

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Outside the main thread (ValueError) its owner handles signals.
            with contextlib.suppress(ValueError):
                self._previous[number] = signal.signal(number, self._note)
        if process_count() > 1:
            self._agreement = StopAgreement()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if self._agreement is not None:
            self._agreement.close()

    def reached(self, step: int) -> bool:
        """Whether to stop before the next step, agreed over all processes."""
        if self._agreement is None:
            return self.signal is not None
        # jax's own agreement hears SIGTERM alone, and misses one before a resumed run's first step.
        if self.signal is not None:
            self._agreement.announce(signal.Signals(self.signal).name)
        return self._agreement.reached(step)

    @property
    def asked(self) -> bool:
        """Whether to stop before the step is over; on several processes never."""
        return self.signal is not None and self._agreement is None

    @property
    def reason(self) -> str:
        """What ended the run, as its last record says it."""
        heard = self._agreement.heard if self._agreement is not None else None
        interrupted = self.signal == signal.SIGINT or heard == signal.SIGINT.name
        return "interrupted" if interrupted else "terminated"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
