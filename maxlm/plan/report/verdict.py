"""The first things a person wants to know of a plan: does it fit, how long, how much, and if not, what then.

In comes a `Plan`; out come one sentence, the figures of the step and the run, and for a plan that does
not fit what would make it fit, with the arithmetic.
"""

from __future__ import annotations

import math

from maxlm.plan.report.units import UNKNOWN, days, dollars, memory_size, share, step_seconds
from maxlm.plan.result import Memory, Operation, Plan
from maxlm.train import quantities as q


def verdict(plan: Plan) -> str:
    """One sentence: fits, or by how much it does not; the step's time."""
    memory = plan.memory
    if memory is None:
        told = "Does not fit: the compiler refused the program before its memory was known"
        return f"{told}." if plan.time is None else f"{_speed(plan)}; its memory is not known."
    if not memory.fits:
        over = memory.total - memory.capacity
        return (
            f"Does not fit: needs {memory_size(memory.total)} on a device where a program may use "
            f"{memory_size(memory.capacity)}, {memory_size(over)} "
            f"({share(over, memory.capacity)}) too much."
        )
    fits = (
        f"Fits: {memory_size(memory.total)} of {memory_size(memory.capacity)} per device "
        f"({share(memory.total, memory.capacity)})"
    )
    return f"{fits}. {_speed(plan)}." if plan.time is not None else f"{fits}."


def figures(plan: Plan) -> list[tuple[str, str, str]]:
    """`(name, value, remark)` of the step and of the run; `–` where something is not known."""
    time, cost = plan.time, plan.cost
    a_chip = ""
    if plan.tokens_per_second is not None:
        a_chip = f"{q.count(plan.tokens_per_second / plan.chips)} per chip"
    budget = f"for {q.count(cost.tokens)} tokens" if cost.tokens is not None else "no token budget"
    return [
        ("step", step_seconds(time.total if time else None), f"{plan.tokens_per_step:,} tokens"),
        ("MFU", q.percent(plan.mfu), "model FLOPs over peak"),
        ("tokens/s", q.count(plan.tokens_per_second), a_chip),
        ("time", days(cost.days), budget),
        ("chip-hours", q.count(cost.chip_hours), f"on {plan.chips:,} chip{'s' * (plan.chips > 1)}"),
        ("cost", dollars(cost.dollars), cost.price or "no price"),
    ]


def remedies(plan: Plan) -> list[str]:
    """What would make a plan fit, largest certainty first; empty where it fits or memory is unknown."""
    memory = plan.memory
    if memory is None or memory.fits:
        return []
    found = _fewer_copies(plan, memory)
    state = _state(memory)
    working = memory.activations + memory.temporaries
    room = memory.capacity - state
    if room <= 0:
        return [*found, *_state_too_large(plan, memory, state)]
    keep = memory.total - memory.capacity
    if memory.activations > keep:
        found.append(
            f"Keep less for the backward pass: the kept activations are "
            f"{memory_size(memory.activations)}, and {memory_size(keep)} less of them would do "
            f"({share(keep, memory.activations)}), by another parallel.rematerialization."
        )
    found.append(
        f"Fewer tokens at once: beside {_kinds(memory)} there is room for "
        f"{memory_size(room)}, activations and temporaries take {memory_size(working)}. As far as "
        f"they grow with the tokens, at most {share(room, working)} of these may be in flight: "
        f"{_fewer_tokens(plan, math.ceil(working / room))}."
    )
    if working < memory.capacity:
        chips = math.ceil(_one_copy(plan, state) / (memory.capacity - working))
        if chips > plan.chips:  # else splitting instead of copying is enough, which is said above
            found.append(
                f"More chips, with as many tokens each: from {chips:,} on (now {plan.chips:,}) "
                f"{_kinds(memory)}, spread over all, leave enough."
            )
    return found


def is_charged(plan: Plan, operation: Operation) -> bool:
    """Whether the compiler was asked and gave no estimate, so that bytes over bandwidth are charged."""
    return plan.method == "compiled" and not operation.estimated


def _state(memory: Memory) -> int:
    return memory.parameters + memory.optimizer + memory.gradients + memory.other


def _kinds(memory: Memory) -> str:
    """What the state is, in words: a plan that was not compiled may not know gradients."""
    return "parameters, optimizer and gradients" if memory.gradients else "parameters and optimizer"


def _one_copy(plan: Plan, state: float) -> float:
    """Bytes of a state of which every device holds so much; replicas hold the same."""
    return plan.chips * state / plan.mesh.get("replica", 1)


def _fewer_tokens(plan: Plan, times: int) -> str:
    """How to have so many times fewer tokens in flight; micro-batches have whole rows."""
    rows, smaller = plan.rows_at_once, "or so much smaller a batch"
    if rows is None:
        return f"train.accumulation {times} times as large, {smaller}"
    for more in range(times, rows + 1):
        if rows % more == 0:
            return f"train.accumulation {more} times as large, {smaller}"
    # More context on as many devices leaves less for rows, which micro-batches have to make up for.
    rest = -(-times // rows)
    cut = (
        f"shorter rows, or both parallel.context, over which a row is cut, and train.accumulation "
        f"{rest} times as large"
    )
    if rows == 1:
        return f"there is one row at once already, so {cut}"
    return f"train.accumulation {rows} times as large leaves one row at once; beyond that {cut}"


def _fewer_copies(plan: Plan, memory: Memory) -> list[str]:
    """`replica` devices hold the same parameters; `fsdp` would split them."""
    copies = plan.mesh.get("replica", 1)
    if copies <= 1:
        return []
    held = memory.parameters + memory.optimizer + memory.gradients
    return [
        f"Split instead of copied: replica {copies} holds {copies} copies of the state; the same "
        f"chips as fsdp would save up to {memory_size(held * (copies - 1) / copies)} of "
        f"{memory_size(held)} per device."
    ]


def _state_too_large(plan: Plan, memory: Memory, state: int) -> list[str]:
    chips = math.ceil(_one_copy(plan, state) / memory.capacity)
    kinds = _kinds(memory)
    return [
        f"{kinds[0].upper()}{kinds[1:]} alone take {memory_size(state)} of "
        f"{memory_size(memory.capacity)}: neither rematerialisation nor a smaller batch can help. "
        f"Spread evenly they would need at least {chips:,} chips (now {plan.chips:,}), and some more "
        "for activations."
    ]


def _speed(plan: Plan) -> str:
    if plan.time is None:
        return f"Step time {UNKNOWN}"
    mfu = f", {q.percent(plan.mfu)} MFU" if plan.mfu is not None else ""
    return f"A step takes {step_seconds(plan.time.total)}{mfu}"
