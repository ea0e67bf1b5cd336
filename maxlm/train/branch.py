"""Starting a run from another run's state: annealing, a longer context, another mixture.

A branch keeps the parent's step, optimizer state and data position. Its timeline is the parent's up
to the branch point followed by its own phases, so each source is read on where the parent stopped;
its schedule begins at the branch point.
"""

from __future__ import annotations

from maxlm.config.duration import Duration, DurationUnit
from maxlm.config.schema import PhaseConfig, RunConfig, SourceConfig
from maxlm.data.loader import Loader
from maxlm.data.open_sources import open_sources
from maxlm.data.phases import Timeline
from maxlm.errors import CheckpointError, ConfigError
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import require_run


def branch_point(config: RunConfig) -> tuple[str, int] | None:
    """The parent's folder and the step of a resolved branch; None for a run of its own."""
    if config.train.branch_from is None:
        return None
    folder, _, step = config.train.branch_from.rpartition("@")
    return folder, int(step)


def branched(config: RunConfig, reference: str) -> RunConfig:
    """A config whose run goes on from `RUN` or `RUN@STEP`.

    `train.duration` and `schedule` count from the branch point; the data seed is the parent's.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: the config cannot follow the parent's.
    """
    folder, step = require_run(reference)
    checkpoints = Checkpoints(folder.checkpoints)
    step = checkpoints.latest if step is None else step
    if step is None:
        raise CheckpointError(f"{folder.path} has no complete checkpoint to branch from")
    parent = RunConfig.model_validate(checkpoints.metadata(step)["config"])
    if parent.data.packing != config.data.packing:
        raise ConfigError(
            f"data.packing: {folder.path} packs '{parent.data.packing}', this config "
            f"'{config.data.packing}'; a branch reads on in its parent's rows"
        )
    timeline = _timeline(parent)
    past = _past_phases(timeline, step)
    before = timeline.at_step(step)
    data = config.data.model_copy(
        update={
            "seed": parent.data.seed,
            "mixture": _joined_mixture(parent, config),
            "phases": past + _own_phases(config),
        }
    )
    duration = _total(config.train.duration, step, before.cursor, before.tokens_before)
    train = config.train.model_copy(
        update={"branch_from": f"{folder.path}@{step}", "duration": duration}
    )
    return config.model_copy(update={"data": data, "train": train})


def _timeline(parent: RunConfig) -> Timeline:
    assert parent.data.batch_size
    sources = open_sources(parent.data)
    loader = Loader(
        sources, parent.data, batch_size=parent.data.batch_size, total=parent.train.duration
    )
    return loader.timeline


def _past_phases(timeline: Timeline, step: int) -> list[PhaseConfig]:
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


def _own_phases(config: RunConfig) -> list[PhaseConfig]:
    """The branch's phases with their weights spelled out, so that no parent's source slips in."""
    own = {name: source.weight for name, source in config.data.mixture.items()}
    phases = config.data.phases or [PhaseConfig()]
    return [p if p.weights else p.model_copy(update={"weights": own}) for p in phases]


def _joined_mixture(parent: RunConfig, config: RunConfig) -> dict[str, SourceConfig]:
    joined = dict(config.data.mixture)
    for name, source in parent.data.mixture.items():
        mine = joined.setdefault(name, source)
        if (mine.store, mine.split) != (source.store, source.split):
            raise ConfigError(
                f"data.mixture.{name}: the parent read {source.store} ({source.split}) under this "
                f"name, this config {mine.store} ({mine.split}); give the new source another name"
            )
    return joined


def _total(duration: Duration | None, steps: int, examples: int, tokens: int) -> Duration:
    done = {
        DurationUnit.STEPS: steps,
        DurationUnit.EXAMPLES: examples,
        DurationUnit.TOKENS: tokens,
    }
    if duration is None or duration.unit not in done:
        raise ConfigError(
            "train.duration: a branch needs its own length, counted from the branch point, in "
            "steps, examples or tokens (train.duration='500 steps')"
        )
    return Duration(amount=duration.amount + done[duration.unit], unit=duration.unit)
