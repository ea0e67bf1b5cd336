"""A plan by arithmetic, in milliseconds: for ranking layouts, and for hardware without a compiler here.

In: a config and a topology; out: a `Plan` whose method is `analytic`. Its state bytes are exact; the
rest is a roofline with constants seen in compiled programs (`habits.py`), so it says which of two
layouts is better rather than how long a step is. The compiler says that (`compiling/`).
"""

from __future__ import annotations

from maxlm.config.schema import RunConfig
from maxlm.model.count import train_flops_per_token
from maxlm.plan.arithmetic.compute_time import Part, compute_parts
from maxlm.plan.arithmetic.job import Job, job_of
from maxlm.plan.arithmetic.memory import analytic_memory
from maxlm.plan.arithmetic.traffic import collectives_of
from maxlm.plan.edges import edge_notes
from maxlm.plan.result import Collective, Cost, Operation, Plan, StepTime
from maxlm.plan.topology import Topology


def analytic_plan(
    config: RunConfig, topology: Topology, *, name: str = "", vocab_size: int | None = None
) -> Plan:
    """What a step takes, by arithmetic.

    Args:
        config: as loaded; the mesh, batch and length have to divide.
        topology: where.
        name: of the config, for people.
        vocab_size: where neither the config nor a token store tells.

    Raises:
        ConfigError, ParallelError: the config does not fit itself or the mesh.
    """
    job = job_of(config, topology, vocab_size=vocab_size)
    parts, collectives = compute_parts(job), collectives_of(job)
    time = step_time(job, parts, collectives)
    flops = train_flops_per_token(job.model, job.length) * job.tokens_per_step
    peak = job.chip.peak * topology.num_devices
    return Plan(
        config=name or job.config.name,
        topology=topology.name,
        method="analytic",
        mesh={axis: size for axis, size in job.mesh.items() if size > 1},
        chips=topology.num_chips,
        tokens_per_step=job.tokens_per_step,
        model_flops=flops,
        mfu=flops / (peak * time.total),
        memory=analytic_memory(job),
        time=time,
        cost=Cost(tokens=job.resolved.total_tokens, days=None, chip_hours=None, dollars=None),
        operations=[_operation(part) for part in sorted(parts, key=lambda p: -p.seconds)],
        collectives=collectives,
        notes=[*_notes(job), *edge_notes(topology, collectives)],
        rows_at_once=job.rows,
    )


def step_time(job: Job, parts: list[Part], collectives: list[Collective]) -> StepTime:
    """Where a step's seconds go, of what is computed and what is sent."""

    def of_kind(kind: str) -> float:
        return sum(part.seconds for part in parts if part.kind == kind)

    blocking = sum(c.seconds for c in collectives if not c.is_overlapped)
    overlapped = sum(c.seconds for c in collectives if c.is_overlapped)
    # Keys and values travel beside attention alone, parameters and their gradients beside all of a layer.
    turning = [c for c in collectives if c.is_overlapped and c.kind == "collective-permute"]
    ring = sum(c.seconds for c in turning)
    attention = sum(part.seconds for part in parts if part.name.startswith("attention ("))
    layers = sum(part.seconds for part in parts if part.name.endswith("layers)"))
    return StepTime(
        matmuls=of_kind("matmul"),
        elementwise=of_kind("other"),
        kernels=of_kind("kernel"),
        blocking=blocking,
        overlapped=overlapped,
        exposed=max(0.0, ring - attention) + max(0.0, overlapped - ring - layers),
        bubble=layers * (1 - 1 / job.idle),
    )


def _operation(part: Part) -> Operation:
    return Operation(
        name=part.name,
        kind=part.kind,
        times=part.times,
        seconds=part.seconds,
        source="",
        module="",
        shape="",
        estimated=False,
    )


def _notes(job: Job) -> list[str]:
    notes = [
        "by arithmetic, for ranking layouts: bytes of the state are exact, all else is estimated"
    ]
    if job.chip.platform == "gpu":
        notes.append("no figure for GPUs was held against one: memory and step time are unmeasured")
    return notes
