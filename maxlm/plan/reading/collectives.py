"""Collectives of a compiled program: kind, devices, bytes on the wire, and whether anything runs meanwhile.

In: an instruction of the schedule; out: the collectives in it. They stand bare (the device waits), as a
start and a done with other work between, inside fusions (beside a matmul, or with the slice that makes
a reduce-scatter of an all-reduce), in computations that another core runs, and between slices as what is
sent to the hosts' runtime. One that is spread over
several fusions carries the same channel in each and counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maxlm.parallel.chips import Chip
from maxlm.plan.reading.hlo import Computation, Instruction, Program
from maxlm.plan.reading.replica_groups import axes_of, is_across, read_groups
from maxlm.plan.reading.shapes import shape_bytes
from maxlm.plan.result import Collective

KINDS = frozenset(
    [
        "all-gather",
        "all-reduce",
        "reduce-scatter",
        "all-to-all",
        "ragged-all-to-all",
        "collective-permute",
        "collective-broadcast",
    ]
)

# Starts of computations that run beside the schedule, on a SparseCore.
ON_OTHER_CORES = ("call-start", "custom-call-start", "async-start")
# What the runtime between slices calls them.
_TRANSFERS = {"ONE_TO_ONE": "collective-permute"}


@dataclass(frozen=True)
class Wiring:
    """What the collectives run over.

    Attributes:
        chip: for the links' speed.
        axes: of the mesh, name → size, outermost first; empty: not known.
        slices: the slice of each device, in the mesh's order; empty: all are in one.
    """

    chip: Chip
    axes: Mapping[str, int]
    slices: Sequence[int]

    def axes_between_slices(self) -> tuple[str, ...]:
        """Axes along which devices of several slices lie."""
        if not self.slices or not self.axes:
            return ()
        slices = np.asarray(self.slices).reshape(tuple(self.axes.values()))
        return tuple(n for d, n in enumerate(self.axes) if (np.diff(slices, axis=d) != 0).any())


@dataclass(frozen=True)
class Found:
    """A collective at one place of the schedule.

    Attributes:
        collective: as it is reported.
        channel: its number in the program; empty: none.
        begins: False for the later fusions of one that goes on beside several.
    """

    collective: Collective
    channel: str
    begins: bool


def find_collectives(
    instruction: Instruction, computation: Computation, program: Program, times: int, wiring: Wiring
) -> list[Found]:
    """Collectives that an instruction of the schedule is, starts or holds.

    Args:
        instruction: of the schedule; a `-done` has none.
        computation: which holds it.
        program: the module.
        times: how often it runs in a step.
        wiring: mesh and links.
    """
    if instruction.opcode == "send":
        return _between_slices(instruction, computation, program, times, wiring)
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        started = instruction.opcode.endswith("-start")
        return [_found(instruction, computation, program, kind, times, wiring, started, True)]
    if instruction.opcode not in ("fusion", "custom-call", *ON_OTHER_CORES):
        return []
    found = []
    for inner, holder in _inside(instruction, program):
        kind = inner.opcode.removesuffix("-start")
        scatters = _scatters(instruction, holder)
        if scatters and kind == "all-reduce":
            kind = "reduce-scatter"
        beside = instruction.opcode != "fusion" or (not scatters and _is_continued(inner, holder))
        begins = inner.config("flag_start") in (None, "-1")
        found.append(_found(inner, holder, program, kind, times, wiring, beside, begins))
    # A fusion names its line better than what was moved into it does.
    own = program.frames.source(instruction.attributes)
    around = own or _source(instruction, computation, program)
    return [
        replace(f, collective=replace(f.collective, source=own or f.collective.source or around))
        for f in found
    ]


def settle(found: list[Found]) -> list[Collective]:
    """Each collective once: of those that go on in later fusions, the place where they begin."""
    begun = {(f.collective.kind, f.channel) for f in found if f.begins}
    kept: list[Collective] = [f.collective for f in found if f.begins]
    seen: dict[tuple[str, str], Collective] = {}
    for f in found:
        key = (f.collective.kind, f.channel)
        if f.begins or key in begun:
            continue
        # No start was seen: it runs as often as the part that runs least.
        if key not in seen or f.collective.times < seen[key].times:
            seen[key] = f.collective
    return [*kept, *seen.values()]


def ring_bytes(kind: str, payload: float, size: int) -> float:
    """Bytes that a device sends on a ring of `size` devices.

    Args:
        kind: of collective.
        payload: bytes per device: the gathered array, or the array before it is reduced or sent.
        size: devices of a group.
    """
    if kind in ("collective-permute", "collective-broadcast"):
        return payload
    return (2 if kind == "all-reduce" else 1) * payload * (size - 1) / size


def _between_slices(
    send: Instruction, computation: Computation, program: Program, times: int, wiring: Wiring
) -> list[Found]:
    """What the hosts exchange for the devices of several slices: a `send` to the runtime, and a `recv`."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', send.attributes)
    if transfer is None:
        return []
    kind = _TRANSFERS.get(transfer.group(1), transfer.group(1).lower().replace("_", "-"))
    size = len(set(wiring.slices)) or (_count(target.group(1)) if target else 2)
    sent = shape_bytes(computation.by_name[send.operands[0]].shape)
    payload = sent * size if kind == "all-gather" else sent
    wire = ring_bytes(kind, payload, size)
    collective = Collective(
        name=send.name,
        kind=kind,
        axes=wiring.axes_between_slices(),
        size=size,
        times=times,
        payload_bytes=float(payload * times),
        wire_bytes=wire * times,
        seconds=wire * times / wiring.chip.network_bandwidth,
        is_overlapped=True,
        network=True,
        source=_source(send, computation, program),
    )
    return [Found(collective, send.attribute("channel_id") or send.name, True)]


def _count(listed: str) -> int:
    """How many a list such as `1,2` or `0:3` names."""
    ends = [[int(n) for n in part.split(":")] for part in listed.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def _found(
    instruction: Instruction,
    holder: Computation,
    program: Program,
    kind: str,
    times: int,
    wiring: Wiring,
    is_overlapped: bool,
    begins: bool,
) -> Found:
    groups = read_groups(instruction.attributes, program.num_partitions)
    size = int(groups.shape[1])
    known = (holder.by_name.get(operand) for operand in instruction.operands)
    given = sum(shape_bytes(operand.shape) for operand in known if operand)
    payload = given * size if kind == "all-gather" else given
    wire = ring_bytes(kind, payload, size)
    network = is_across(groups, wiring.slices)
    chip = wiring.chip
    speed = chip.network_bandwidth if network else chip.link_bandwidth * max(1, chip.torus_axes)
    collective = Collective(
        name=instruction.name,
        kind=kind,
        axes=axes_of(groups, wiring.axes),
        size=size,
        times=times,
        payload_bytes=float(payload * times),
        wire_bytes=wire * times,
        seconds=wire * times / speed,
        is_overlapped=is_overlapped,
        network=network,
        source=_source(instruction, holder, program),
    )
    return Found(collective, instruction.attribute("channel_id") or instruction.name, begins)


def _source(instruction: Instruction, holder: Computation, program: Program) -> str:
    """Its line, or that of what it is given, as far up as a few copies and fusions."""
    waiting, steps = [instruction], 0
    while waiting and steps < 12:
        current, steps = waiting.pop(0), steps + 1
        inner = [c.root for c in program.called(current)] if current.opcode == "fusion" else []
        for candidate in (current, *inner):
            if source := program.frames.source(candidate.attributes):
                return source
        waiting += [holder.by_name[o] for o in current.operands if o in holder.by_name]
    return ""


def _inside(
    instruction: Instruction, program: Program
) -> Iterator[tuple[Instruction, Computation]]:
    """Collectives in the computations that an instruction names, at any depth, with their holders."""
    seen: set[str] = set()
    waiting = program.called(instruction)
    while waiting:
        computation = waiting.pop()
        if computation.name in seen:
            continue
        seen.add(computation.name)
        for inner in computation.instructions:
            if inner.opcode.removesuffix("-start") in KINDS:
                yield inner, computation
            elif inner.opcode in ("fusion", "call", *ON_OTHER_CORES):
                waiting += program.called(inner)


def _scatters(instruction: Instruction, holder: Computation) -> bool:
    """Whether the all-reduce keeps a device's own part only."""
    return "all-reduce-scatter" in holder.name or "AllReduceScatter" in (
        instruction.config("emitter") or ""
    )


def _is_continued(inner: Instruction, holder: Computation) -> bool:
    """Whether a fused collective is one that later fusions go on with and a last one ends."""
    return "async_collective_fusion_config" in inner.attributes or any(
        "AsyncCollective" in other.attributes for other in holder.instructions
    )
