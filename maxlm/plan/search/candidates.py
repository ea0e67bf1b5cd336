"""The layouts that a search chooses among: meshes, rematerialisation, accumulation, compiler options.

In: a config and a topology; out: every variant that divides, with its plan by arithmetic, those that
cannot fit left out. The global batch, the model and the data stay as they are: no variant changes what
a run learns but by rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maxlm.config.choices import Rematerialization
from maxlm.config.load import load_config
from maxlm.config.mesh_axes import MESH_AXES, product_of
from maxlm.config.schema import RunConfig
from maxlm.errors import ConfigError, ParallelError
from maxlm.parallel.chips import Chip
from maxlm.plan.arithmetic.estimate import analytic_plan
from maxlm.plan.arithmetic.job import job_of
from maxlm.plan.result import Plan
from maxlm.plan.topology import Topology

# The policies that offload are left out: no compiler estimates the host's link, so that they would seem
# free. `Space` takes them where a user asks for them.
POLICIES = (
    Rematerialization.NONE,
    Rematerialization.MATMULS,
    Rematerialization.ATTENTION,
    Rematerialization.FULL,
)
ACCUMULATIONS = (1, 2, 4, 8, 16)
ROUNDS = (1, 2)
# By arithmetic memory is known to about 15% beyond the state (docs/search.md): so much over is still tried.
MEMORY_MARGIN = 1.2


@dataclass(frozen=True)
class Space:
    """What a search varies.

    Attributes:
        policies: of rematerialisation.
        accumulations: micro-batches of a step.
        rounds: of a pipeline.
        axes: mesh axes that may be over 1.
        vary: values by dotted key of the config, such as of an attention kernel's blocks.
    """

    policies: Sequence[Rematerialization] = POLICIES
    accumulations: Sequence[int] = ACCUMULATIONS
    rounds: Sequence[int] = ROUNDS
    axes: Sequence[str] = MESH_AXES
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One layout.

    Attributes:
        settings: values by dotted key that make it out of the config.
        config: with these values.
        analytic: its plan by arithmetic.
        adds_options: whether it has compiler options that the config lacks.
        is_given: whether it is the layout of the config itself.
    """

    settings: dict[str, Any]
    config: RunConfig
    analytic: Plan
    adds_options: bool = False
    is_given: bool = False

    @property
    def seconds(self) -> float:
        """Of a step, by arithmetic."""
        assert self.analytic.time
        return self.analytic.time.total

    @property
    def label(self) -> str:
        """For people: mesh, policy, and what else differs from the config's defaults."""
        mesh = {axis: self.settings[f"parallel.{axis}"] for axis in MESH_AXES}
        parts = [product_of(mesh), str(self.settings["parallel.rematerialization"])]
        if self.settings["train.accumulation"] > 1:
            parts.append(f"accumulation {self.settings['train.accumulation']}")
        if self.settings["parallel.pipeline_rounds"] > 1:
            parts.append(f"rounds {self.settings['parallel.pipeline_rounds']}")
        shown = ("parallel.rematerialization", "parallel.pipeline_rounds", "train.accumulation")
        known = {*shown, "parallel.compiler_options", *(f"parallel.{axis}" for axis in MESH_AXES)}
        parts += [f"{k.split('.')[-1]} {v}" for k, v in self.settings.items() if k not in known]
        if self.adds_options:
            parts.append("compiler options")
        if self.is_given:
            parts.append("as given")
        return ", ".join(parts)


@dataclass(frozen=True)
class Candidates:
    """All layouts of a search.

    Attributes:
        fitting: fastest by arithmetic first.
        considered: how many were made.
        divided: how many of them divide over the devices.
        smallest: the layout that needs least memory, whether or not it fits; None: none divides.
    """

    fitting: list[Candidate]
    considered: int
    divided: int
    smallest: Candidate | None


def find_candidates(
    config: RunConfig,
    topology: Topology,
    space: Space | None = None,
    *,
    vocab_size: int | None = None,
) -> Candidates:
    """Every layout that divides and may fit.

    Args:
        config: as loaded.
        topology: where.
        space: what is varied; by default everything that changes no result.
        vocab_size: where neither the config nor a token store tells.

    Raises:
        ConfigError: the config is wrong whatever the layout.
    """
    space, found, considered = space or Space(), [], 0
    given = _given(config, topology, vocab_size)
    for settings in _settings(config, topology, space):
        considered += 1
        varied = with_settings(config, settings)
        try:
            plan = analytic_plan(varied, topology, vocab_size=vocab_size)
        except ParallelError:
            continue
        adds = varied.parallel.compiler_options != config.parallel.compiler_options
        found.append(Candidate(settings, varied, plan, adds, is_given=varied == given))
    fitting = [c for c in found if _may_fit(c.analytic)]
    return Candidates(
        fitting=sorted(fitting, key=lambda c: c.seconds),
        considered=considered,
        divided=len(found),
        smallest=min(found, key=lambda c: _total(c.analytic), default=None),
    )


def _given(config: RunConfig, topology: Topology, vocab_size: int | None) -> RunConfig | None:
    """The config with the layout that it has on a topology; None: it does not divide."""
    try:
        job = job_of(config, topology, vocab_size=vocab_size)
    except ParallelError:
        return None
    parallel = job.config.parallel
    own = {
        **{f"parallel.{axis}": size for axis, size in job.mesh.items()},
        "parallel.rematerialization": parallel.rematerialization,
        "parallel.pipeline_rounds": parallel.pipeline_rounds,
        "train.accumulation": job.accumulation,
    }
    return with_settings(config, own)


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A config with values by dotted key. Raises ConfigError for a key that is none."""
    plain = config.model_dump(mode="json")
    for key, value in settings.items():
        *path, last = key.split(".")
        section: Any = plain
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise ConfigError(f"{key}: no such option to vary (`maxlm config options` lists them)")
        section[last] = value
    return RunConfig.model_validate(plain)


def mesh_shapes(
    devices: int, axes: Sequence[str] = MESH_AXES, most: Mapping[str, int] | None = None
) -> Iterator[dict[str, int]]:
    """Every way to make a number of devices a product over some of the mesh axes.

    Args:
        devices: to lay out.
        axes: that may be over 1.
        most: sizes that an axis has to divide.
    """

    def fill(left: int, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
        if not names:
            if left == 1:
                yield {}
            return
        first, *rest = names
        for size in range(1, left + 1):
            if left % size or (size > 1 and most and most.get(first, size) % size):
                continue
            for others in fill(left // size, tuple(rest)):
                yield {first: size} | others

    for sizes in fill(devices, tuple(axes)):
        yield {axis: sizes.get(axis, 1) for axis in MESH_AXES}


def _settings(config: RunConfig, topology: Topology, space: Space) -> Iterator[dict[str, Any]]:
    model, options = config.model, config.parallel.compiler_options
    # What an axis has to divide, to leave most shapes out at once; the rest is refused one by one.
    most = {
        "expert": model.num_experts or 1,
        "stage": model.num_layers,
        "context": config.data.length,
        "tensor": model.num_kv_heads or model.num_heads,
    }
    variants = _option_variants(topology.chip, options)
    keys, values = list(space.vary), list(space.vary.values())
    batches = [config.data.batch_size, *(phase.batch_size for phase in config.data.phases)]
    accumulations = [n for n in space.accumulations if not any((b or 0) % n for b in batches)]
    for mesh in mesh_shapes(topology.num_devices, space.axes, most):
        if mesh["replica"] % topology.slices:
            continue
        for policy, accumulation, rounds, chosen in itertools.product(
            space.policies, accumulations, space.rounds, variants
        ):
            if rounds > 1 and mesh["stage"] == 1:
                continue
            # A pipeline's microbatches do what accumulation does, without gathering once more.
            if accumulation > 1 and mesh["stage"] > 1:
                continue
            for extra in itertools.product(*values):
                yield {
                    **{f"parallel.{axis}": size for axis, size in mesh.items()},
                    "parallel.rematerialization": policy.value,
                    "parallel.pipeline_rounds": rounds,
                    "parallel.compiler_options": chosen,
                    "train.accumulation": accumulation,
                    **dict(zip(keys, extra, strict=True)),
                }


def _option_variants(chip: Chip, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The config's compiler options, and with those of the chip's preset, which says what they do."""
    own = dict(options)
    if chip.platform != "tpu":
        return [own]
    more = load_config([f"hardware/{chip.name}"], []).parallel.compiler_options | own
    return [own] if more == own else [own, more]


def _may_fit(plan: Plan) -> bool:
    assert plan.memory
    state = plan.memory.parameters + plan.memory.optimizer
    return state < plan.memory.capacity and _total(plan) <= MEMORY_MARGIN * plan.memory.capacity


def _total(plan: Plan) -> float:
    return plan.memory.total if plan.memory else math.inf
