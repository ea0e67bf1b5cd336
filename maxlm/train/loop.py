"""The training loop: batches in, records and checkpoints out.

It dispatches ahead of the device and reads metrics late; evaluation, sampling and reporting come in
as hooks, so that the loop knows none of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import jax
import numpy as np

from maxlm.errors import DivergedError
from maxlm.model.definition import Params
from maxlm.parallel.agreement import process_index
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train.canonical import to_canonical
from maxlm.train.checkpoint_checks import from_first_process
from maxlm.train.clock import Clock
from maxlm.train.divergence import Divergence
from maxlm.train.interruption import Interruption
from maxlm.train.left_out import Identity, identity, made_at
from maxlm.train.records import RecordWriter, start_record, train_record
from maxlm.train.setup import Run
from maxlm.train.state import TrainState
from maxlm.train.step import StepMetrics

# Steps that may be dispatched and unfinished. More never helps the device, and on a CPU a longer
# queue of un-awaited collectives can deadlock XLA's thread pool.
MAX_IN_FLIGHT = 16


@dataclass(frozen=True)
class Hook:
    """Something done between steps that yields records (an evaluation, a sample).

    Attributes:
        every: steps between calls; it is also called after the last step.
        call: `(step, params) -> records`, each a dict with at least a `kind`; None where a signal
            may end it early.
        makes: the records of a whole call. When a run goes on from a step at which one of them is
            missing, the hook is called first.
    """

    every: int
    call: Callable[[int, Params], Iterable[dict[str, Any] | None]]
    makes: tuple[Identity, ...] = ()

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether it is called after a step."""
        return step % self.every == 0 or step == total_steps


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    reason: str  # finished, terminated (SIGTERM) or interrupted (Ctrl-C)
    step: int
    params: Params  # the averaged weights where the run keeps them
    newest: dict[str, dict[str, Any]]  # the last record by kind, evaluations by set


def train(run: Run, hooks: Iterable[Hook], writer: RecordWriter) -> Outcome:
    """Train from the run's newest checkpoint, or its start, to its last step.

    Raises:
        CheckpointError: a save failed, or no checkpoint can be restored.
        DataError: a token store is damaged.
        DivergedError: too many steps in a row had gradients that are not finite.
    """
    with jax.set_mesh(run.mesh), Interruption() as interruption:
        state, step = run.restore_or_begin(writer.message)
        writer.write(start_record(run, resumed_from=step or None))
        steps = _Steps(run, writer, step)
        newest = _Newest(state, step)
        try:
            state = _take_steps(run, list(hooks), writer, steps, newest, interruption)
            if run.checkpoints.latest != steps.dispatched:
                _save(run, writer, steps, state)
            run.checkpoints.close()
            reason = _end(run, writer, steps, interruption)
        except BaseException as error:
            if isinstance(error, Exception) and newest.good and _is_worth_saving(error):
                _save_before_failing(run, newest)
            _end_failed(run, writer, steps)
            raise
    return Outcome(reason, steps.dispatched, evaluated_params(state), writer.newest)


def _take_steps(
    run: Run,
    hooks: Iterable[Hook],
    writer: RecordWriter,
    steps: _Steps,
    newest: _Newest,
    interruption: Interruption,
) -> TrainState:
    """Train to the last step, or until a signal asks to stop; `newest` follows."""
    state = newest.state
    rows = _rows_of(run)
    step = steps.dispatched
    if step in run.saved_steps():  # and not where a branch begins
        _make_up(run, hooks, writer, steps, state, interruption)
    cursor = run.timeline.at_step(step).cursor
    with run.loader.iterate(cursor, rows) as batches:
        while step < run.timeline.total_steps and not interruption.reached(step):
            with steps.clock.part("data_wait"):
                batch = next(batches)
            size = run.timeline.at_step(step).batch_size
            placed = place_batch(batch, size, rows(size), run.mesh)
            newest.good = False  # the state is donated: a step that fails leaves none
            state, metrics = run.train_step(state, placed)
            step += 1
            newest.state, newest.step, newest.good = state, step, True
            steps.take(step, metrics)
            _between_steps(run, hooks, writer, steps, state, interruption)
    steps.drain()
    return state


@dataclass
class _Newest:
    """The state after the newest step, for an error beside the steps."""

    state: TrainState
    step: int
    good: bool = True


def _is_worth_saving(error: Exception) -> bool:
    return not isinstance(error, DivergedError) or error.weights_are_finite


def _save_before_failing(run: Run, newest: _Newest) -> None:
    """Keep the work done when an evaluation, a read or a sink fails; that error is what counts."""
    if jax.process_count() > 1:
        return  # the others are elsewhere, and a save needs all
    with contextlib.suppress(Exception):
        jax.block_until_ready(newest.state)
        if newest.step and run.checkpoints.latest != newest.step:
            run.save(newest.step, to_canonical(newest.state, run.model))


def _end(run: Run, writer: RecordWriter, steps: _Steps, interruption: Interruption) -> str:
    """Say how the run ended; a last step whose evaluation a signal cut is not the end of it."""
    step = steps.dispatched
    whole = step >= run.timeline.total_steps and not steps.left_out
    reason = "finished" if whole else interruption.reason
    writer.write({"kind": "end", "step": step, "reason": reason, "seconds": steps.clock.elapsed})
    return reason


def _end_failed(run: Run, writer: RecordWriter, steps: _Steps) -> None:
    """Let a save under way complete and say that the run failed; the first error is what counts."""
    with contextlib.suppress(Exception):
        run.checkpoints.close()
    seconds = steps.clock.elapsed
    record = {"kind": "end", "step": steps.dispatched, "reason": "failed", "seconds": seconds}
    with contextlib.suppress(Exception):
        writer.write(record)


def evaluated_params(state: TrainState) -> Params:
    """The averaged weights where the run keeps them, the weights themselves otherwise."""
    return (state.average or state.params) | state.variables


def _between_steps(
    run: Run,
    hooks: Iterable[Hook],
    writer: RecordWriter,
    steps: _Steps,
    state: TrainState,
    interruption: Interruption,
) -> None:
    step, total = steps.dispatched, run.timeline.total_steps
    if step % run.intervals.checkpoint == 0 or step == total:  # hooks may fail or take long
        steps.drain()
        _save(run, writer, steps, state)
    due = [hook for hook in hooks if hook.is_due(step, total)]
    _call(due, writer, steps, state, interruption)


def _make_up(
    run: Run,
    hooks: Iterable[Hook],
    writer: RecordWriter,
    steps: _Steps,
    state: TrainState,
    interruption: Interruption,
) -> None:
    """Call the hooks of the step that the run goes on from, as far as they left anything out."""
    step, total = steps.dispatched, run.timeline.total_steps
    due = [hook for hook in hooks if hook.makes and hook.is_due(step, total)]
    if due:
        # The first process knows what it wrote; all must call the same hooks.
        made = made_at(run.folder.path, step) if process_index() == 0 else set()
        missing = [i for i, hook in enumerate(due) if not made.issuperset(hook.makes)]
        due = [due[i] for i in from_first_process(missing)]
        _call(due, writer, steps, state, interruption, made)


def _call(
    hooks: Iterable[Hook],
    writer: RecordWriter,
    steps: _Steps,
    state: TrainState,
    interruption: Interruption,
    made: Set[Identity] = frozenset(),
) -> None:
    """Call hooks after the newest step and write their records but those made before."""
    step = steps.dispatched
    for hook in hooks:
        steps.drain()  # else the hook's time would hold the steps still in flight
        with steps.clock.part("eval"):
            for record in chain([None], hook.call(step, evaluated_params(state))):
                if record is None and interruption.asked:
                    steps.left_out = True
                    return
                if record is not None and identity(record) not in made:
                    writer.write({"step": step, **record})


def _save(run: Run, writer: RecordWriter, steps: _Steps, state: TrainState) -> None:
    """Begin a save; its record has the bytes of its arrays and the seconds that training stood."""
    step = steps.dispatched
    start = time.perf_counter()
    with steps.clock.part("save_wait"):
        arrays = to_canonical(state, run.model)
        size = sum(array.nbytes for array in arrays.values())
        run.save(step, arrays)
    writer.write(
        {
            "kind": "checkpoint",
            "step": step,
            "path": run.checkpoints.path(step),
            "bytes": size,
            "seconds": time.perf_counter() - start,
        }
    )


def _rows_of(run: Run) -> Callable[[int], np.ndarray]:
    """Rows of the global batch that this process reads, by batch size."""

    @cache
    def rows(batch_size: int) -> np.ndarray:
        return local_rows(batch_size, run.mesh)

    return rows


class _Steps:
    """Steps in flight and the records made of them once they are done.

    Attributes:
        clock: where the time goes.
        dispatched: the newest step, done or in flight.
        left_out: whether a signal ended the hooks of the newest step early.
    """

    def __init__(self, run: Run, writer: RecordWriter, step: int):
        self.clock = Clock()
        self.dispatched = step
        self.left_out = False
        self._run = run
        self._writer = writer
        self._in_flight: deque[tuple[int, StepMetrics]] = deque()
        self._window: list[StepMetrics] = []
        self._divergence = Divergence(run.folder.path)

    def take(self, step: int, metrics: StepMetrics) -> None:
        """Take note of a dispatched step; handle those that are done by now."""
        self.dispatched = step
        self._in_flight.append((step, metrics))
        while self._in_flight and (len(self._in_flight) > MAX_IN_FLIGHT or self._oldest_is_done()):
            self._retire()

    def drain(self) -> None:
        """Wait for every step in flight."""
        while self._in_flight:
            self._retire()

    def _oldest_is_done(self) -> bool:
        nll: Any = self._in_flight[0][1].nll
        return nll.is_ready()

    def _retire(self) -> None:
        step, metrics = self._in_flight.popleft()
        metrics.nll.block_until_ready()
        self._window.append(metrics)
        total = self._run.timeline.total_steps
        if step % self._run.intervals.log == 0 or step == total:
            window = jax.device_get(self._window)
            self._window = []
            self._writer.write(train_record(self._run, step, window, self.clock))
            self._divergence.watch(step, window)
