"""The timeline of a run: which step reads which examples, in which length, batch and mixture.

In come the data config, the batch size and the run's duration; out goes a `Timeline`, which says
for every step its cursor (examples consumed before it), batch size and length, and back. Durations
in tokens, examples or epochs are rounded up to whole steps of their own phase, so a batch never
straddles two phases. A token here is a position of an example: examples × length, padding
included.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from maxlm.config.schema import DataConfig, Duration, DurationUnit
from maxlm.errors import ConfigError, DataError, did_you_mean

RowsPerEpoch = Callable[[Mapping[str, float], int], int]


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one mixture, length and batch size."""

    index: int
    weights: Mapping[str, float]  # by source name; 0 leaves a source out
    length: int
    batch_size: int
    num_steps: int
    start_step: int
    start_cursor: int
    start_tokens: int

    @property
    def num_examples(self) -> int:
        """Examples in the phase, a multiple of the batch size."""
        return self.num_steps * self.batch_size

    @property
    def end_cursor(self) -> int:
        """Cursor after the phase's last step."""
        return self.start_cursor + self.num_examples

    @property
    def tokens_per_step(self) -> int:
        """Positions in one batch."""
        return self.batch_size * self.length


class Step(NamedTuple):
    """What one step reads."""

    step: int  # 0 is the first
    cursor: int  # examples consumed before this step
    batch_size: int
    length: int
    phase: int
    tokens_before: int  # positions consumed before this step

    @property
    def tokens(self) -> int:
        """Positions in this step's batch."""
        return self.batch_size * self.length


class Timeline:
    """All phases of a run, in order, and the way from step to cursor and back."""

    def __init__(self, phases: list[Phase]):
        """Take phases that follow each other; `build_timeline` makes them from a config."""
        self.phases = tuple(phases)
        self._start_steps = [phase.start_step for phase in phases]
        self._start_cursors = [phase.start_cursor for phase in phases]
        last = phases[-1]
        self.total_steps = last.start_step + last.num_steps
        self.total_examples = last.end_cursor
        self.total_tokens = last.start_tokens + last.num_steps * last.tokens_per_step

    def at_step(self, step: int) -> Step:
        """What step `step` reads. `step == total_steps` gives the state after the last one.

        Raises DataError when the step is outside the run.
        """
        if not 0 <= step <= self.total_steps:
            raise DataError(f"step {step} is outside the run, which has {self.total_steps} steps")
        phase = self.phases[bisect_right(self._start_steps, step) - 1]
        done = step - phase.start_step
        return Step(
            step=step,
            cursor=phase.start_cursor + done * phase.batch_size,
            batch_size=phase.batch_size,
            length=phase.length,
            phase=phase.index,
            tokens_before=phase.start_tokens + done * phase.tokens_per_step,
        )

    def at_cursor(self, cursor: int) -> Step:
        """The step that starts at `cursor`. Raises DataError when none does."""
        phase = self.phase_at(min(cursor, self.total_examples - 1))
        done, rest = divmod(cursor - phase.start_cursor, phase.batch_size)
        if rest or cursor > self.total_examples:
            raise DataError(
                f"no step starts at cursor {cursor}: phase {phase.index} begins at "
                f"{phase.start_cursor} and takes {phase.batch_size} examples a step until "
                f"{phase.end_cursor}; the batch size or the phases have changed since the cursor "
                "was saved"
            )
        return self.at_step(phase.start_step + done)

    def phase_at(self, cursor: int) -> Phase:
        """The phase that the example at `cursor` belongs to. Raises DataError beyond the run."""
        if not 0 <= cursor < self.total_examples:
            raise DataError(
                f"cursor {cursor} is outside the run, which has {self.total_examples} examples"
            )
        return self.phases[bisect_right(self._start_cursors, cursor) - 1]

    def steps(self, duration: Duration) -> int:
        """Steps after which at least `duration` of the run has passed (may exceed `total_steps`).

        Raises ConfigError for epochs, which are no fixed number of steps once sources are mixed.
        """
        if duration.unit == DurationUnit.STEPS:
            return ceil(duration.amount)
        if duration.unit == DurationUnit.EPOCHS:
            raise ConfigError(f"'{duration}' cannot be counted here: use steps, tokens or examples")
        for phase in self.phases:
            in_tokens = duration.unit == DurationUnit.TOKENS
            before = phase.start_tokens if in_tokens else phase.start_cursor
            per_step = phase.tokens_per_step if in_tokens else phase.batch_size
            steps = max(0, ceil((duration.amount - before) / per_step))
            if steps <= phase.num_steps:
                break
        return phase.start_step + steps


def build_timeline(
    data: DataConfig,
    *,
    batch_size: int,
    total: Duration | None,
    rows_per_epoch: RowsPerEpoch | None = None,
) -> Timeline:
    """Lay the phases of `data` one after another.

    Args:
      data: the data section; without `phases` the run is a single phase.
      batch_size: examples per step where a phase names none.
      total: length of the whole run. The last phase, if its duration is open, takes what the
        others leave; if it is given too, both must agree. May be None when all are given.
      rows_per_epoch: rows of all sources with a weight above 0, from weights and length; needed
        for durations in epochs only.

    Raises ConfigError naming the phase and the key.
    """
    own = {name: source.weight for name, source in data.mixture.items()}
    phases: list[Phase] = []
    count = len(data.phases)
    for index in range(max(1, count)):
        given = data.phases[index] if count else None
        where = f"data.phases[{index}]" if given else "train"
        weights = _merge_weights(own, given.weights if given else {}, where)
        length = (given and given.length) or data.length
        size = (given and given.batch_size) or batch_size
        start = _end(phases[-1]) if phases else (0, 0, 0)
        duration = given.duration if given else None
        if duration is None and index < count - 1:
            raise ConfigError(
                f"{where}.duration is open, but only the last of the {count} phases may leave it so"
            )
        if duration is None and total is None:
            raise ConfigError(f"{where}.duration: nothing says how long this phase is; set it")
        if duration is None:
            assert total is not None
            steps = _remaining_steps(total, start, size, length, weights, rows_per_epoch, count)
        else:
            steps = _whole_steps(duration, size, length, weights, rows_per_epoch)
        if steps < 1:
            raise ConfigError(
                f"{where} has no steps: "
                + (f"its duration is {duration}" if duration else f"the run's {total} are already "
                   f"taken by the phases before it ({start[0]} steps, {start[2]:,} tokens)")
            )  # fmt: skip
        phases.append(Phase(index, weights, length, size, steps, *start))
    timeline = Timeline(phases)
    if total is not None and count and data.phases[-1].duration is not None:
        _check_total(timeline, total)
    return timeline


def _end(phase: Phase) -> tuple[int, int, int]:
    """Step, cursor and tokens after a phase."""
    return (
        phase.start_step + phase.num_steps,
        phase.end_cursor,
        phase.start_tokens + phase.num_steps * phase.tokens_per_step,
    )


def _merge_weights(
    own: Mapping[str, float], given: Mapping[str, float], where: str
) -> dict[str, float]:
    """The sources' own weights with those that a phase changes."""
    for name in given:
        if name not in own:
            raise ConfigError(
                f"{where}.weights names the source '{name}', which data.mixture does not have"
                f"{did_you_mean(name, own)}; it has: {', '.join(own) or 'none'}"
            )
    return {**own, **given}


def _whole_steps(
    duration: Duration,
    batch_size: int,
    length: int,
    weights: Mapping[str, float],
    rows_per_epoch: RowsPerEpoch | None,
) -> int:
    """Steps that cover a duration."""
    amount = duration.amount
    match duration.unit:
        case DurationUnit.STEPS:
            return ceil(amount)
        case DurationUnit.EXAMPLES:
            return ceil(amount / batch_size)
        case DurationUnit.TOKENS:
            return ceil(amount / (batch_size * length))
        case DurationUnit.EPOCHS:
            if rows_per_epoch is None:
                raise ConfigError(
                    f"'{duration}' needs the token stores to be read first; use tokens or steps"
                )
            return ceil(amount * rows_per_epoch(weights, length) / batch_size)


def _remaining_steps(
    total: Duration,
    start: tuple[int, int, int],
    batch_size: int,
    length: int,
    weights: Mapping[str, float],
    rows_per_epoch: RowsPerEpoch | None,
    num_phases: int,
) -> int:
    """Steps of the last phase: the run's duration less what the phases before it took."""
    step, cursor, tokens = start
    if total.unit == DurationUnit.EPOCHS and num_phases > 1:
        raise ConfigError(
            f"train.duration '{total}' with {num_phases} phases is ambiguous, as each phase has "
            "its own epoch: give the run's duration in tokens, or the last phase one in epochs"
        )
    taken = {DurationUnit.STEPS: step, DurationUnit.EXAMPLES: cursor, DurationUnit.TOKENS: tokens}
    left = total.model_copy(update={"amount": total.amount - taken.get(total.unit, 0)})
    return _whole_steps(left, batch_size, length, weights, rows_per_epoch)


def _check_total(timeline: Timeline, total: Duration) -> None:
    """Refuse a run duration that the phases, all of given duration, do not make up."""
    have = timeline.total_steps
    want = have if total.unit == DurationUnit.EPOCHS else timeline.steps(total)
    if want != have:
        parts = " + ".join(str(phase.num_steps) for phase in timeline.phases)
        raise ConfigError(
            f"train.duration is {total}, that is {want} steps, but data.phases make up "
            f"{parts} = {have} steps: leave the last phase's duration open, or unset train.duration"
        )
