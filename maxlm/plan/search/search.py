"""Which layout of a run is fastest: arithmetic ranks them all, the compiler confirms the best few.

In: a config, a topology and a function that compiles; out: every layout that was compiled, the best of
them, and how far the arithmetic was from the compiler. Several compile at once. After each, what is
expected of the others is corrected (`refine.py`); the search ends when none of them is expected to beat
the best, or when its time is up. Compiled programs are kept on disk, so the same command goes on where
another one ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from maxlm.config.schema import RunConfig
from maxlm.errors import CompileError, ConfigError, ParallelError, PlanError
from maxlm.plan.result import Plan
from maxlm.plan.search.candidates import Candidate, Candidates
from maxlm.plan.search.refine import Corrections

# (config, what is going on) -> its compiled plan. Called in threads; raises CompileError where the
# compiler fails, and ends with whatever the second raises, which it is to call about once a second.
Measure = Callable[[RunConfig, Callable[[str, float], None]], Plan]

BUDGET_MINUTES = 30.0
# Steps nearer than this are equal: micro-batches that send everything twice may seem 0.1% faster where
# it all hides behind the computation.
_SAME = 0.005
# Compiled at least, so that the corrections rest on more than one layout.
_AT_LEAST = 3


@dataclass(frozen=True)
class Row:
    """A layout that was compiled.

    Attributes:
        candidate: the layout.
        compiled: its plan; None where the compiler failed.
        error: what it said then.
    """

    candidate: Candidate
    compiled: Plan | None
    error: str = ""

    @property
    def seconds(self) -> float | None:
        """Of a step; None where it does not fit or failed."""
        plan = self.compiled
        fits = plan is not None and plan.memory is not None and plan.memory.fits
        return plan.time.total if fits and plan and plan.time else None

    @property
    def wire_bytes(self) -> float:
        """That a device sends in a step."""
        return sum(c.wire_bytes for c in self.compiled.collectives) if self.compiled else 0.0


@dataclass
class Status:
    """How far a search is, for people.

    Attributes:
        compiled: layouts so far.
        left: those that are still expected to beat the best.
        running: labels of those that compile, with their seconds.
        best: the best row.
        elapsed: seconds.
        seconds_left: at the rate of those compiled, at most the budget's rest; None: no rate yet.
    """

    compiled: int
    left: int
    running: dict[str, float]
    best: Row | None
    elapsed: float
    seconds_left: float | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        rows: in the order in which they were compiled.
        candidates: all layouts.
        corrections: how far arithmetic was from the compiler.
        ended: why it ended, in words.
        seconds: that it took.
    """

    rows: list[Row]
    candidates: Candidates
    corrections: Corrections
    ended: str
    seconds: float

    @property
    def is_compiled(self) -> bool:
        """Whether a compiler confirmed anything; on GPUs arithmetic is all there is."""
        plans = [row.compiled for row in self.rows]
        return not plans or any(plan is None or plan.method == "compiled" for plan in plans)

    @property
    def best(self) -> Row | None:
        """The fastest layout that fits (of equal ones the given, else what sends least); None: none does."""
        return _best(self.rows)


def search(
    candidates: Candidates,
    measure: Measure,
    *,
    budget_minutes: float = BUDGET_MINUTES,
    workers: int | None = None,
    progress: Callable[[Status], None] = lambda status: None,
) -> SearchResult:
    """Compile the layouts that are expected to be best.

    Args:
        candidates: of `find_candidates`.
        measure: compiles one.
        budget_minutes: by which it ends; what would not end by then, at the rate so far, is not begun.
        workers: compiles at once; None: one for each core, two at most on small machines.
        progress: told about once a second.

    Raises:
        ConfigError: no layout divides, or none can fit.
    """
    if not candidates.fitting:
        raise ConfigError(_none_fits(candidates))
    run = _Search(candidates, measure, budget_minutes * 60, workers or os.cpu_count() or 1)
    return run.run(progress)


class _Stopped(Exception):
    """Raised inside a compile that nobody waits for any more."""


@dataclass
class _Search:
    candidates: Candidates
    measure: Measure
    budget: float
    workers: int
    rows: list[Row] = field(default_factory=list)
    corrections: Corrections = field(default_factory=Corrections)
    running: dict[Future[Row], Candidate] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)  # seconds of each that ended in this search
    stopped: threading.Event = field(default_factory=threading.Event)
    start: float = field(default_factory=time.monotonic)

    def run(self, progress: Callable[[Status], None]) -> SearchResult:
        """Until nothing is left, or the budget is spent, or a person interrupts."""
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                ended = self._loop(pool, progress)
            finally:
                self.stopped.set()  # their children end within a second
        seconds = time.monotonic() - self.start
        return SearchResult(self.rows, self.candidates, self.corrections, ended, seconds)

    def _loop(self, pool: ThreadPoolExecutor, progress: Callable[[Status], None]) -> str:
        while True:
            left = self._left()
            over = self._elapsed >= self.budget
            # What would not end within the budget would be lost with all that it took.
            usual = sum(self.took) / len(self.took) if self.took else 0.0
            late = self._elapsed + usual >= self.budget
            while left and len(self.running) < self.workers and not late:
                candidate = self._next(left)
                left.remove(candidate)
                self.running[pool.submit(self._compile, candidate)] = candidate
            if over or not self.running:
                break
            done, _ = wait(self.running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                del self.running[future]
                row = future.result()
                self.rows.append(row)
                if row.compiled is not None:
                    self.corrections.add(row.candidate, row.compiled)
            progress(self._status())
        if left or self.running:
            count = len(left) + len(self.running)
            minutes = f"the budget of {self.budget / 60:g} minutes"
            return f"{minutes} is spent, or would be by another compile; {count} are left"
        return "no other layout is expected to beat the best"

    def _left(self) -> list[Candidate]:
        """Layouts that are neither compiled nor compiling and may beat the best that fits."""
        taken = {id(row.candidate) for row in self.rows}
        taken |= {id(candidate) for candidate in self.running.values()}
        best = _best(self.rows)
        limit = best.seconds if best and best.seconds else float("inf")
        few = len(self.rows) + len(self.running) < _AT_LEAST
        left = [c for c in self.candidates.fitting if id(c) not in taken]
        return [c for c in left if few or self._may_beat(c, limit)]

    def _may_beat(self, candidate: Candidate, limit: float) -> bool:
        outlook = self.corrections.outlook(candidate)
        assert candidate.analytic.memory
        return outlook.bound < limit and outlook.bytes < candidate.analytic.memory.capacity

    def _next(self, left: list[Candidate]) -> Candidate:
        """The layout as given, then the best outlook; beside one that compiles, first of another mesh."""
        meshes = [str(c.analytic.mesh) for c in self.running.values()]

        def order(candidate: Candidate) -> tuple[bool, bool, float]:
            outlook = self.corrections.outlook(candidate)
            taken = str(candidate.analytic.mesh) in meshes
            return not candidate.is_given, taken, outlook.seconds

        return min(left, key=order)

    def _compile(self, candidate: Candidate) -> Row:
        began = time.monotonic()
        label = candidate.label

        def told(stage: str, seconds: float) -> None:
            if self.stopped.is_set():
                raise _Stopped
            self.since[label] = began

        try:
            return Row(candidate, self.measure(candidate.config, told))
        except (_Stopped, CompileError, ParallelError, PlanError) as error:
            return Row(candidate, None, str(error))
        finally:
            self.since.pop(label, None)
            self.took.append(time.monotonic() - began)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self.start

    def _status(self) -> Status:
        now, left, elapsed = time.monotonic(), len(self._left()), self._elapsed
        # What they took when they were compiled, be it by an earlier search.
        taken = [r.compiled.compile_seconds or 0.0 for r in self.rows if r.compiled]
        rate = sum(taken) / len(taken) / self.workers if taken else None
        more = left + len(self.running)
        return Status(
            compiled=len(self.rows),
            left=left,
            running={label: now - began for label, began in list(self.since.items())},
            best=_best(self.rows),
            elapsed=elapsed,
            seconds_left=None if rate is None else min(rate * more, self.budget - elapsed),
        )


def _best(rows: list[Row]) -> Row | None:
    """The fastest; of those as fast as can be told, the one as given, else the one that sends least."""
    fitting = [row for row in rows if row.seconds]
    if not fitting:
        return None
    fastest = min(row.seconds or 0.0 for row in fitting)
    equal = [row for row in fitting if (row.seconds or 0.0) <= fastest * (1 + _SAME)]
    return min(equal, key=lambda row: (not row.candidate.is_given, row.wire_bytes, row.seconds))


def _none_fits(candidates: Candidates) -> str:
    smallest = candidates.smallest
    if smallest is None:
        return (
            f"none of {candidates.considered} layouts divides: batch, length, heads or layers do "
            "not fit this number of devices"
        )
    memory = smallest.analytic.memory
    assert memory
    gib = 1 << 30
    return (
        f"none of {candidates.divided} layouts fits: the smallest ({smallest.label}) needs about "
        f"{memory.total / gib:.1f} GiB of {memory.capacity / gib:.1f} on a device; take more chips, "
        "a smaller batch or a shorter length"
    )
