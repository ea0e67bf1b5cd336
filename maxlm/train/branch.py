"""Starting a run from another run's state: annealing, a longer context, another mixture.

A branch keeps the parent's step, optimizer state and data position. Its timeline is the parent's up
to the branch point followed by its own phases, so each source is read on where the parent stopped;
its schedule begins at the branch point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.config.duration import Duration, DurationUnit
from maxlm.config.meaning import INHERITED, keep_derived
from maxlm.config.schema import DataConfig, PhaseConfig, RunConfig, SourceConfig
from maxlm.data.loader import Loader
from maxlm.data.open_sources import open_sources
from maxlm.data.phases import Timeline
from maxlm.errors import CheckpointError, ConfigError
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder, parse_run, require_run


def branch_point(config: RunConfig) -> tuple[str, int] | None:
    """The parent's folder and the step of a resolved branch; None for a run of its own."""
    if config.train.branch_from is None:
        return None
    folder, step = parse_run(config.train.branch_from)
    if step is None:
        raise ConfigError(
            f"train.branch_from: '{config.train.branch_from}' names no step; it is set by "
            "`maxlm train CONFIG --branch-from RUN@STEP`"
        )
    return folder, step


@dataclass(frozen=True)
class _Past:
    """What a branch goes on from: the parent's data up to the branch point."""

    parent: str  # its folder
    step: int
    data: DataConfig  # of the parent
    phases: list[PhaseConfig]  # up to the branch point: in steps, every value given
    config: Mapping[str, Any]  # resolved, what the branch leaves open is taken from it


def branched(
    config: RunConfig, reference: str, saved: Mapping[str, Any] | None = None
) -> RunConfig:
    """A config whose run goes on from `RUN` or `RUN@STEP`.

    `train.duration` and `schedule` count from the branch point; the data seed is the parent's, and
    so is what the config leaves to be derived: batch size, learning rate, precision, model.

    Args:
        config: as loaded.
        reference: the parent, and the step when it is not the newest.
        saved: the resolved config of the branch when it has begun before. Then the parent is not
            read: it may have trained on, and its checkpoint be gone.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: the config cannot follow the parent's.
    """
    past = _past_of_branch(saved, reference) or _past_of_parent(reference)
    config = keep_derived(past.config, config, INHERITED)
    if past.data.packing != config.data.packing:
        raise ConfigError(
            f"data.packing: {past.parent} packs '{past.data.packing}', this config "
            f"'{config.data.packing}'; a branch reads on in its parent's rows"
        )
    data = config.data.model_copy(
        update={
            "seed": past.data.seed,
            "mixture": _joined_mixture(past, config),
            "phases": _past_phases(past, config) + _own_phases(past, config),
        }
    )
    train = config.train.model_copy(
        update={
            "branch_from": f"{past.parent}@{past.step}",
            "duration": _total(config.train.duration, past),
        }
    )
    return config.model_copy(update={"data": data, "train": train})


def _past_of_parent(reference: str) -> _Past:
    folder, step = require_run(reference)
    checkpoints = Checkpoints(folder.checkpoints)
    step = checkpoints.latest if step is None else step
    if step is None:
        raise CheckpointError(f"{folder.path} has no complete checkpoint to branch from")
    plain = checkpoints.metadata(step)["config"]
    parent = RunConfig.model_validate(plain)
    return _Past(folder.path, step, parent.data, _phases_until(_timeline(parent), step), plain)


def _past_of_branch(saved: Mapping[str, Any] | None, reference: str) -> _Past | None:
    """The past of a branch that has begun, from its own config; None when it is of another."""
    if saved is None or not (saved.get("train") or {}).get("branch_from"):
        return None
    begun = RunConfig.model_validate(saved)
    point = branch_point(begun)
    assert point is not None
    folder, step = parse_run(reference)
    if RunFolder(folder).path != point[0] or step not in (None, point[1]):
        return None
    phases, left = [], point[1]
    for phase in begun.data.phases:
        if left > 0 and phase.duration is not None:
            phases.append(phase)
            left -= int(phase.duration.amount)
    return _Past(*point, begun.data, phases, saved)


def _timeline(parent: RunConfig) -> Timeline:
    assert parent.data.batch_size
    sources = open_sources(parent.data)
    loader = Loader(
        sources, parent.data, batch_size=parent.data.batch_size, total=parent.train.duration
    )
    return loader.timeline


def _phases_until(timeline: Timeline, step: int) -> list[PhaseConfig]:
    phases = []
    for phase in timeline.phases:
        steps = min(phase.num_steps, step - phase.start_step)
        if steps > 0:
            duration = Duration(amount=steps, unit=DurationUnit.STEPS)
            phases.append(
                PhaseConfig(
                    duration=duration,
                    weights=dict(phase.weights),
                    length=phase.length,
                    batch_size=phase.batch_size,
                )
            )
    return phases


def _past_phases(past: _Past, config: RunConfig) -> list[PhaseConfig]:
    """The parent's phases, which the branch's new sources have no part in."""
    absent = dict.fromkeys(config.data.mixture, 0.0)
    return [p.model_copy(update={"weights": {**absent, **p.weights}}) for p in past.phases]


def _own_phases(past: _Past, config: RunConfig) -> list[PhaseConfig]:
    """The branch's phases, which only the sources that it names have a part in."""
    own = {name: source.weight for name, source in config.data.mixture.items()}
    if not own:
        return config.data.phases or [PhaseConfig()]
    absent = dict.fromkeys(past.data.mixture, 0.0)
    return [
        phase.model_copy(update={"weights": {**absent, **own, **phase.weights}})
        for phase in config.data.phases or [PhaseConfig()]
    ]


def _joined_mixture(past: _Past, config: RunConfig) -> dict[str, SourceConfig]:
    joined = dict(config.data.mixture)
    for name, source in past.data.mixture.items():
        mine = joined.setdefault(name, source)
        if (mine.store, mine.split) != (source.store, source.split):
            raise ConfigError(
                f"data.mixture.{name}: the parent read {source.store} ({source.split}) under this "
                f"name, this config {mine.store} ({mine.split}); give the new source another name"
            )
    return joined


def _total(duration: Duration | None, past: _Past) -> Duration:
    """The length of the whole run, from the branch's own."""
    done = dict.fromkeys((DurationUnit.STEPS, DurationUnit.EXAMPLES, DurationUnit.TOKENS), 0)
    for phase in past.phases:
        assert phase.duration and phase.batch_size and phase.length
        steps = int(phase.duration.amount)
        done[DurationUnit.STEPS] += steps
        done[DurationUnit.EXAMPLES] += steps * phase.batch_size
        done[DurationUnit.TOKENS] += steps * phase.batch_size * phase.length
    if duration is None or duration.unit not in done:
        raise ConfigError(
            "train.duration: a branch needs its own length, counted from the branch point, in "
            "steps, examples or tokens (train.duration='500 steps')"
        )
    return Duration(amount=duration.amount + done[duration.unit], unit=duration.unit)
