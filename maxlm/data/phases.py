"""The timeline of a run: which step reads which examples, in which length, batch and mixture.

In come the data config, the batch size and the run's duration; out goes a `Timeline`, which says
for every step its cursor (examples consumed before it), batch size and length, and back. Durations
in tokens, examples or epochs are rounded up to whole steps of their own phase, so a batch never
straddles two phases. A token here is a position of an example: examples × length, padding
included.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from maxlm.config.duration import Duration, DurationUnit, to_steps
from maxlm.config.schema import DataConfig
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
    rows_per_epoch: int | None = None  # of all sources with a weight; None when not known

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

    def steps(self, duration: Duration, after: int = 0) -> int:
        """Steps that take at least `duration` from step `after` on (may exceed the run's end).

        Each step counts with the batch and length of its own phase: what a branch does is not
        counted in its parent's batch.

        Raises ConfigError for epochs when the timeline was laid out without the data.
        """
        ahead: list[Phase] = []
        for phase in self.phases:
            left = phase.start_step + phase.num_steps - after
            if left > 0:
                ahead.append(replace(phase, num_steps=min(left, phase.num_steps)))
        steps = before = 0
        for number, phase in enumerate(ahead or self.phases[-1:]):
            steps = before + max(0, _whole_steps(_left(duration, ahead[:number]), phase))
            before += phase.num_steps
            if steps <= before:
                break
        return steps


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
        duration = given.duration if given else None
        if duration is None and index < count - 1:
            raise ConfigError(
                f"{where}.duration is open, but only the last of the {count} phases may leave it so"
            )
        asked = duration or (total and _left(total, phases))
        if asked is None:
            raise ConfigError(f"{where}.duration: nothing says how long this phase is; set it")
        start = _end(phases[-1]) if phases else (0, 0, 0)
        rows = rows_per_epoch(weights, length) if rows_per_epoch else None
        phase = Phase(index, weights, length, size, 0, *start, rows_per_epoch=rows)
        steps = _whole_steps(asked, phase)
        if steps < 1:
            why = (
                f"its duration is {duration}"
                if duration
                else f"train.duration is {total}, which the phases before it take already "
                f"({start[0]} steps, {start[2]:,} tokens)"
            )
            raise ConfigError(f"{where} has no steps: {why}")
        phases.append(replace(phase, num_steps=steps))
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


def _whole_steps(duration: Duration, phase: Phase) -> int:
    """Steps of a phase that cover a duration."""
    epoch = phase.rows_per_epoch
    return to_steps(
        duration,
        tokens_per_step=phase.tokens_per_step,
        examples_per_step=phase.batch_size,
        tokens_per_epoch=epoch and epoch * phase.length,
    )


def _left(duration: Duration, before: Sequence[Phase]) -> Duration:
    """What the phases before leave of a duration from the start of the run; may be negative."""
    taken = 0.0
    for phase in before:
        match duration.unit:
            case DurationUnit.STEPS:
                taken += phase.num_steps
            case DurationUnit.EXAMPLES:
                taken += phase.num_examples
            case DurationUnit.TOKENS:
                taken += phase.num_steps * phase.tokens_per_step
            case DurationUnit.EPOCHS:
                taken += phase.num_examples / (phase.rows_per_epoch or 1)
    return Duration(amount=duration.amount - taken, unit=duration.unit)


def _check_total(timeline: Timeline, total: Duration) -> None:
    """Refuse a run duration that the phases, all of given duration, do not make up."""
    have = timeline.total_steps
    want = timeline.steps(total)
    if want != have:
        parts = " + ".join(str(phase.num_steps) for phase in timeline.phases)
        raise ConfigError(
            f"train.duration is {total}, that is {want} steps, but data.phases make up "
            f"{parts} = {have} steps: leave the last phase's duration open, or unset train.duration"
        )
