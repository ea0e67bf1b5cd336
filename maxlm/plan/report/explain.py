"""A plan in words: what bounds the step, where the roofline is, what the next changes would bring.

In come a plan and its chip; out come sentences. Each figure is taken from the plan, or follows from it
by the arithmetic that the sentence shows; what a plan cannot support is not said.
"""

from __future__ import annotations

from maxlm.parallel.chips import Chip
from maxlm.plan.report.gains import Gain, gains, group_words, is_recomputed
from maxlm.plan.report.grouped import CollectiveGroup, group_collectives
from maxlm.plan.report.units import share, step_seconds
from maxlm.plan.report.verdict import is_charged, remedies, verdict
from maxlm.plan.result import Plan, StepTime
from maxlm.train import quantities as q

_ATTENTION = ("attention", "splash", "flash", "mha")


def explain(plan: Plan, chip: Chip) -> list[str]:
    """Sentences, the most important first.

    Args:
        plan: any; where the step's time is unknown, only what would make it fit is said.
        chip: on which it runs.

    Returns:
        What bounds the step; the rooflines; where the time goes; then changes, each with the seconds
        that it would bring, largest first.
    """
    if plan.time is None or plan.time.total <= 0:
        return [verdict(plan), *remedies(plan)]
    told = [_bound(plan, plan.time, chip), *_rooflines(plan, chip), _at_peak(plan, plan.time, chip)]
    told += [*_recomputed(plan, plan.time), *_attention(plan, plan.time)]
    told += [*_communication(plan, plan.time, chip), *_not_estimated(plan, plan.time)]
    found = gains(plan)
    told += [gain.sentence for gain in found]
    told += _together(plan, plan.time, found)
    return [*told, *remedies(plan)]


def _bound(plan: Plan, time: StepTime, chip: Chip) -> str:
    """The largest of compute, memory and links, by name."""
    compute, moved = time.matmuls + time.kernels, time.blocking + time.exposed
    sizes = {"compute": compute, "memory bandwidth": time.elementwise, "communication": moved}
    first = max(sizes, key=lambda name: sizes[name])
    of = f"{step_seconds(sizes[first])} of {step_seconds(time.total)} ({share(sizes[first], time.total)})"
    if first == "compute":
        kernels = f" and {step_seconds(time.kernels)} of kernels" if time.kernels else ""
        return (
            f"The step is bound by compute: {of}, {step_seconds(time.matmuls)} of matmuls{kernels}."
        )
    if first == "memory bandwidth":
        return (
            f"The step is bound by {chip.name}'s memory: {of} goes to elementwise work, which reads "
            "and writes more than it computes."
        )
    worst = _worst(plan)
    named = f", most of all by {group_words(worst)} {_link(worst, chip)}" if worst else ""
    return f"The step is bound by communication: {of}{named}."


def _rooflines(plan: Plan, chip: Chip) -> list[str]:
    """FLOPs per byte of memory and per byte on the wire, against the chip's own ratios."""
    flops, told = _flops(plan, chip), []
    memory = plan.memory
    if memory is not None:
        # Masters and optimizer are read and written, gradients and activations written and read.
        state = memory.parameters + memory.optimizer + memory.gradients + memory.activations
        ridge = chip.peak / chip.memory_bandwidth
        most = flops / (2 * state) if state else float("inf")
        side = "compute can bound it" if most >= ridge else "memory bounds it"
        told.append(
            f"Memory roofline: the ridge of {chip.name} is at {chip.peak / 1e12:,.0f} TFLOP/s over "
            f"{chip.memory_bandwidth / 1e9:,.0f} GB/s = {ridge:,.0f} FLOPs per byte. The step's state "
            f"and kept activations, read and written once ({2 * state / 1e9:,.0f} GB), allow at most "
            f"{most:,.0f} model FLOPs per byte: {side}."
        )
    for is_network, name, bandwidth in (
        (False, "Link", chip.sent_over_links),
        (True, "Network", chip.network_bandwidth),
    ):
        sent = [c for c in plan.collectives if c.network == is_network]
        wire, seconds = sum(c.wire_bytes for c in sent), sum(c.seconds for c in sent)
        if not wire or not seconds:
            continue
        if chip.platform == "gpu":  # whose network cards several of a machine use together
            bandwidth = wire / seconds
        ridge, found = chip.peak / bandwidth, flops / wire
        side = "compute" if found >= ridge else "the wire"
        told.append(
            f"{name} roofline: {found:,.0f} model FLOPs per byte sent ({wire / 1e9:,.1f} GB a device "
            f"and step), the ridge is at {ridge:,.0f} with {bandwidth / 1e9:,.0f} GB/s: were all "
            f"hidden, {side} would bound the step."
        )
    return told


def _at_peak(plan: Plan, time: StepTime, chip: Chip) -> str:
    """How much of the step is model FLOPs at peak, and how fast matmuls and kernels run."""
    ideal = _flops(plan, chip) / chip.peak
    busy = time.matmuls + time.kernels
    told = (
        f"At the peak of {chip.peak / 1e12:,.0f} TFLOP/s the model's FLOPs would take "
        f"{step_seconds(ideal)}, {share(ideal, time.total)} of the step; elementwise work is "
        f"{step_seconds(time.elementwise)} ({share(time.elementwise, time.total)})."
    )
    if not busy:
        return told
    return (
        f"{told} Matmuls and kernels take {step_seconds(busy)} for them: {share(ideal, busy)} of peak, "
        "recomputation counted against them."
    )


def _recomputed(plan: Plan, time: StepTime) -> list[str]:
    seconds = sum(one.seconds for one in plan.operations if is_recomputed(one))
    if not seconds:
        return []
    return [
        f"At least {step_seconds(seconds)} ({share(seconds, time.total)}) recomputes the forward for "
        "the backward pass; what is fused into other operations is not counted."
    ]


def _attention(plan: Plan, time: StepTime) -> list[str]:
    kernels = [one for one in plan.operations if one.kind == "kernel"]
    seconds = sum(
        one.seconds
        for one in kernels
        if any(word in f"{one.name} {one.module} {one.source}".lower() for word in _ATTENTION)
    )
    if not seconds:
        return []
    return [f"Attention kernels take {step_seconds(seconds)} ({share(seconds, time.total)})."]


def _communication(plan: Plan, time: StepTime, chip: Chip) -> list[str]:
    told = []
    if time.overlapped:
        hidden = time.overlapped - time.exposed
        shown = f"{step_seconds(time.exposed)} show" if time.exposed else "nothing shows"
        told.append(
            f"Asynchronous collectives take {step_seconds(time.overlapped)}, of which compute hides "
            f"{step_seconds(hidden)} and {shown}."
        )
    worst = _worst(plan)
    if worst is not None and worst.seconds:
        hidden_too = any(c.is_overlapped for c in plan.collectives) and not worst.is_overlapped
        blocks = " that blocks" if hidden_too else ""
        told.append(
            f"Costliest collective{blocks}: {group_words(worst)} sends {worst.wire_bytes / 1e9:,.1f} GB "
            f"in {step_seconds(worst.seconds)}, {worst.wire_bytes / worst.seconds / 1e9:,.0f} GB/s "
            f"{_link(worst, chip)}."
        )
    return told


def _not_estimated(plan: Plan, time: StepTime) -> list[str]:
    charged = [one for one in plan.operations if is_charged(plan, one)]
    seconds = sum(one.seconds for one in charged)
    if not seconds:
        return []
    return [
        f"Charged by bytes over bandwidth, since the compiler has no estimate for them: "
        f"{len(charged)} of the operations, {step_seconds(seconds)} ({share(seconds, time.total)})."
    ]


def _together(plan: Plan, time: StepTime, found: list[Gain]) -> list[str]:
    """What all changes that do not touch the batch would bring; only where there are several."""
    seconds = sum(gain.seconds for gain in found if gain.adds_up)
    if plan.mfu is None or sum(gain.adds_up for gain in found) < 2 or seconds >= time.total:
        return []
    left = time.total - seconds
    return [
        f"All of these that leave the batch as it is: {step_seconds(left)} a step, "
        f"{q.percent(plan.mfu * time.total / left)} MFU."
    ]


def _worst(plan: Plan) -> CollectiveGroup | None:
    """The collectives that cost most: blocking ones first, else those that overlap."""
    groups = group_collectives(plan.collectives)
    return max(groups, key=lambda g: (not g.is_overlapped, g.seconds), default=None)


def _link(group: CollectiveGroup, chip: Chip) -> str:
    """The wire that a group uses, and how much of it, by the rate at which it sends."""
    if group.network:
        card = f"the network of {chip.network_bandwidth / 1e9:,.1f} GB/s a device"
        rate = group.wire_bytes / group.seconds if group.seconds else 0.0
        several = chip.platform == "gpu" and rate > 1.01 * chip.network_bandwidth
        return (
            f"over {card}, of several devices of a machine together" if several else f"over {card}"
        )
    if not chip.torus_axes:
        return f"over links of {chip.link_bandwidth / 1e9:,.0f} GB/s a device"
    return f"by links along {chip.torus_axes} axes of {chip.link_bandwidth / 1e9:,.0f} GB/s each"


def _flops(plan: Plan, chip: Chip) -> float:
    """Model FLOPs of one device and step."""
    return plan.model_flops / (plan.chips * chip.devices_per_chip)
