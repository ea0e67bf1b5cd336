"""Weak scaling from plans: as many tokens a chip on ever more chips, and what makes the step longer.

In come plans, the first of which the others are compared with; out come a Markdown table and sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from maxlm.plan.report.grouped import group_collectives
from maxlm.plan.report.parts import time_parts
from maxlm.plan.report.units import UNKNOWN, memory_size, share, step_seconds
from maxlm.plan.result import Plan
from maxlm.train import quantities as q

_LEAST = 0.005  # of the first step: less is no bend
_HEADS = (
    "topology", "chips", "mesh", "step", "blocking + exposed", "hidden", "MFU", "tokens/s a chip",
    "against the first", "memory",
)  # fmt: skip


def scaling_table(plans: Sequence[Plan]) -> str:
    """One Markdown row a plan, in the given order."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|---|" + "---:|" * (len(_HEADS) - 1)]
    return "\n".join([*lines, *(_row(plan, plans[0]) for plan in plans)])


def what_bends(plans: Sequence[Plan]) -> list[str]:
    """For each plan after the first, what its step is longer or shorter by, and through what."""
    if not plans:
        return []
    first, told = plans[0], []
    for plan in plans[1:]:
        if plan.time is None or first.time is None:
            told.append(f"{plan.topology}: not known, because one of the two does not fit.")
            continue
        change = _per_tokens(plan, first) * plan.time.total - first.time.total
        if abs(change) < _LEAST * first.time.total:
            told.append(f"{plan.topology}: as {first.topology}, within 0.5% a token.")
            continue
        way = "longer" if change > 0 else "shorter"
        told.append(
            f"{plan.topology}: {step_seconds(abs(change))} ({share(abs(change), first.time.total)}) "
            f"{way} than {first.topology} for as many tokens a chip: {_causes(plan, first)}."
        )
    return told


def _row(plan: Plan, first: Plan) -> str:
    time, memory = plan.time, plan.memory
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    own, other = _tokens_a_chip(plan), _tokens_a_chip(first)
    cells = (
        plan.topology,
        f"{plan.chips:,}",
        mesh,
        step_seconds(time.total if time else None),
        step_seconds(time.blocking + time.exposed if time else None),
        step_seconds(time.overlapped - time.exposed if time else None),
        q.percent(plan.mfu),
        q.count(own),
        q.percent(own / other if own is not None and other else None),
        memory_size(memory.total if memory else None)
        + ("" if memory is None or memory.fits else " (does not fit)"),
    )
    return "| " + " | ".join(cells) + " |"


def _tokens_a_chip(plan: Plan) -> float | None:
    rate = plan.tokens_per_second
    return None if rate is None else rate / plan.chips


def _per_tokens(plan: Plan, first: Plan) -> float:
    """What a plan's seconds are multiplied with, to be those of the first one's tokens a chip."""
    return (first.tokens_per_step / first.chips) / (plan.tokens_per_step / plan.chips)


def _causes(plan: Plan, first: Plan) -> str:
    """The kinds of time that changed, largest first, and the collectives that changed most."""
    assert plan.time is not None and first.time is not None
    scale, least = _per_tokens(plan, first), _LEAST / 2 * first.time.total
    pairs = zip(time_parts(plan.time), time_parts(first.time), strict=True)
    changes = [(new.name, scale * new.amount - old.amount) for new, old in pairs]
    changes = [(name, change) for name, change in changes if abs(change) >= least]
    changes.sort(key=lambda pair: -abs(pair[1]))
    told = ", ".join(f"{name} {_signed(change)}" for name, change in changes) or UNKNOWN
    links = _links(plan, scale)
    before = _links(first, 1.0)
    moved = {name: links.get(name, 0.0) - before.get(name, 0.0) for name in {*links, *before}}
    most = max(moved, key=lambda name: abs(moved[name]), default=None)
    if most is None or abs(moved[most]) < least:
        return told
    return f"{told}; of the collectives, {most} changed most, {_signed(moved[most])} on the wire"


def _links(plan: Plan, scale: float) -> dict[str, float]:
    """Seconds on the wire by kind, axes and network."""
    found: dict[str, float] = {}
    for group in group_collectives(plan.collectives):
        # A group's size grows with the pod: named by its axes alone, it is the same group.
        over = " × ".join(group.axes) or "axes that were not recognised"
        name = f"{group.kind} over {over}" + (" between slices" if group.network else "")
        found[name] = found.get(name, 0.0) + scale * group.seconds
    return found


def _signed(seconds: float) -> str:
    return ("+" if seconds > 0 else "−") + step_seconds(abs(seconds))
