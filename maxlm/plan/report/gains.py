"""Changes to a planned step, each with the seconds that it would bring by the plan's own figures.

In comes a plan whose time is known; out come `Gain`s, largest first: collectives to hide, pipeline
bubbles, recomputation for which there is memory, a larger batch that fits, the costliest elementwise
work. Below half a percent of the step nothing is worth a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.plan.reading.shapes import shape_bytes
from maxlm.plan.report.grouped import CollectiveGroup, group_collectives
from maxlm.plan.report.short_shape import short_shape
from maxlm.plan.report.units import memory_size, share, step_seconds
from maxlm.plan.result import Memory, Operation, Plan, StepTime

_LEAST = 0.005  # of a step
# Mesh axes over which only parameters and their gradients travel, however large the batch.
_PARAMETER_AXES = frozenset({"fsdp", "replica"})


@dataclass(frozen=True)
class Gain:
    """One change.

    Attributes:
        seconds: that a step would be shorter by; for a larger batch, per as many tokens as now.
        sentence: what to change and what it brings.
        adds_up: whether it may be added to other gains: not what changes the batch, and no upper bound.
    """

    seconds: float
    sentence: str
    adds_up: bool = True


def gains(plan: Plan) -> list[Gain]:
    """All changes that the plan's figures support, largest first."""
    time = plan.time
    if time is None or time.total <= 0:
        return []
    found = [
        *_blocking(plan, time),
        *_exposed(plan, time),
        *_bubble(plan, time),
        *_kept(plan, time),
        *_larger_batch(plan, time),
        *_elementwise(plan, time),
    ]
    worth = [gain for gain in found if gain.seconds >= _LEAST * time.total]
    return sorted(worth, key=lambda gain: -gain.seconds)


def group_words(group: CollectiveGroup) -> str:
    """`all-reduce over fsdp`."""
    return f"{group.kind} over {group.over}"


def is_recomputed(operation: Operation) -> bool:
    """Whether `jax.checkpoint` runs it a second time, for the backward pass."""
    return "rematted_computation" in operation.module


def _blocking(plan: Plan, time: StepTime) -> list[Gain]:
    """One gain for each group of collectives during which nothing else runs."""
    return [
        Gain(
            group.seconds,
            f"Hiding the {step_seconds(group.seconds)} of blocking {group_words(group)} would bring "
            f"{share(group.seconds, time.total)}{_from(group)}.",
        )
        for group in group_collectives(plan.collectives)
        if not group.is_overlapped
    ]


def _exposed(plan: Plan, time: StepTime) -> list[Gain]:
    groups = [group for group in group_collectives(plan.collectives) if group.is_overlapped]
    if not time.exposed:
        return []
    most = max(groups, key=lambda group: group.seconds, default=None)
    named = f" (the longest of them: {group_words(most)})" if most else ""
    return [
        Gain(
            time.exposed,
            f"Hiding the {step_seconds(time.exposed)} of asynchronous collectives that compute does "
            f"not cover{named} would bring {share(time.exposed, time.total)}.",
        )
    ]


def _bubble(plan: Plan, time: StepTime) -> list[Gain]:
    """Idle share b = (S-1) / (M+S-1) of S stages and M microbatches; twice as many leave less."""
    stages = plan.mesh.get("stage", 1)
    if not time.bubble or stages < 2 or time.bubble >= time.total:
        return []
    # Work stays; idle time is inversely proportional to the microbatches.
    gain = time.bubble / 2
    return [
        Gain(
            gain,
            f"Twice the microbatches would halve the pipeline's bubble of {step_seconds(time.bubble)} "
            f"({share(time.bubble, time.total)}) over {stages} stages and bring "
            f"{share(gain, time.total)}, as far as matmuls of half the rows run as fast.",
        )
    ]


def _kept(plan: Plan, time: StepTime) -> list[Gain]:
    """Recomputed results that the free memory could hold, best seconds per byte first."""
    memory = plan.memory
    if memory is None or not memory.fits:
        return []
    free = memory.capacity - memory.total
    candidates = [
        (one, shape_bytes(one.shape) * one.times)
        for one in plan.operations
        if is_recomputed(one) and one.kind in ("matmul", "kernel")
    ]
    candidates = [(one, size) for one, size in candidates if size]
    candidates.sort(key=lambda pair: -pair[0].seconds / pair[1])
    found = []
    for one, size in candidates:
        if size > free:
            continue
        found.append(
            Gain(
                one.seconds,
                f"The step keeps {memory_size(free)} free: saving {_named(one)} would take at most "
                f"{memory_size(size)} and remove {step_seconds(one.seconds)} of recomputation "
                f"({share(one.seconds, time.total)}).",
            )
        )
        free -= size
    return found


def _larger_batch(plan: Plan, time: StepTime) -> list[Gain]:
    """Twice the tokens under the same traffic of parameters, where activations fit twice."""
    memory = plan.memory
    groups = [
        group
        for group in group_collectives(plan.collectives)
        if not group.is_overlapped and group.axes and set(group.axes) <= _PARAMETER_AXES
    ]
    fixed = sum(group.seconds for group in groups)
    if memory is None or not fixed or not _fits_twice(memory):
        return []
    twice = memory.total + memory.activations + memory.temporaries
    return [
        Gain(
            fixed / 2,
            f"Twice the batch would fit ({memory_size(twice)} of {memory_size(memory.capacity)}, "
            f"activations and temporaries doubled); the {step_seconds(fixed)} of blocking "
            f"collectives over {_axes(groups)}, if they carry parameters and gradients, would serve "
            f"twice the tokens: {share(fixed / 2, time.total)} less time per token.",
            adds_up=False,
        )
    ]


def _fits_twice(memory: Memory) -> bool:
    return memory.total + memory.activations + memory.temporaries <= memory.capacity


def _elementwise(plan: Plan, time: StepTime) -> list[Gain]:
    """The costliest source of work that is no matmul, kernel or collective."""
    by_source: dict[str, float] = {}
    for one in plan.operations:
        if one.kind == "other" and one.source:
            by_source[one.source] = by_source.get(one.source, 0.0) + one.seconds
    if not by_source:
        return []
    source = max(by_source, key=lambda name: by_source[name])
    seconds = by_source[source]
    return [
        Gain(
            seconds,
            f"The costliest elementwise work comes from {source}: {step_seconds(seconds)}; without "
            f"it, or fused into a neighbour, the step would be at most {share(seconds, time.total)} "
            "shorter.",
            adds_up=False,
        )
    ]


def _named(operation: Operation) -> str:
    where = f" of {operation.source}" if operation.source else ""
    return f"{operation.name}{where} ({short_shape(operation.shape)}, {operation.times} times)"


def _axes(groups: list[CollectiveGroup]) -> str:
    return ", ".join(dict.fromkeys(group.over for group in groups))


def _from(group: CollectiveGroup) -> str:
    return f" (from {', '.join(group.sources[:2])})" if group.sources else ""
