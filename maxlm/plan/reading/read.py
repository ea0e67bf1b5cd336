"""From the text of a compiled TPU program to the seconds of a step: what computes, what sends, what waits.

In: `compiled.as_text()`, the chip, the mesh; out: a `Reading`. The schedule is walked from its entry, a loop's
body as often as it runs, of a branch the one that takes longest:

- what the compiler estimated, in cycles over the clock;
- what it did not, by the bytes that move over memory bandwidth, listed as not estimated;
- Pallas kernels by their own schedules (`kernel_schedule.py`);
- collectives by the bytes that a device sends on a ring over all its links (`collectives.py`).

Copies between the device's memory and the chip run beside everything and are not charged. A step is
compute, kernels, collectives that block, and what the others take longer than what is scheduled between
their start and their end, or all of them longer than compute and kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maxlm.errors import PlanError
from maxlm.parallel.chips import Chip
from maxlm.plan.reading.collectives import ON_OTHER_CORES, Found, Wiring, find_collectives, settle
from maxlm.plan.reading.constants import Scope
from maxlm.plan.reading.hlo import Computation, Instruction, Program, parse_program
from maxlm.plan.reading.kernel_schedule import scheduled_seconds
from maxlm.plan.reading.kernels import KernelSeconds, KernelTime, is_kernel, kernel_call
from maxlm.plan.reading.loops import expected_trips, trip_count
from maxlm.plan.reading.moved_bytes import moved_bytes
from maxlm.plan.result import Collective, Operation, StepTime

if TYPE_CHECKING:
    from jax.sharding import Mesh

# They name a value, or run beside the schedule.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "partition-id",
        "replica-id",
        "after-all",
        "domain",
        "optimization-barrier",
        "add-dependency",
        "copy-start",
        "slice-start",
        "dynamic-slice-start",
        "recv",
    ]
)
_LIMIT = 1 << 62  # cycles beyond are negative or mean that there is no estimate


@dataclass(frozen=True)
class Reading:
    """What a program says of a step.

    Attributes:
        time: of a step.
        operations: costliest first, kernels among them; collectives are listed apart.
        collectives: most wire bytes first.
        notes: what was assumed, for people.
    """

    time: StepTime
    operations: list[Operation]
    collectives: list[Collective]
    notes: list[str]


def read_program(
    text: str,
    *,
    chip: Chip,
    mesh: Mesh | None = None,
    kernel_seconds: KernelSeconds | None = None,
) -> Reading:
    """Read a scheduled program.

    Args:
        text: `compiled.as_text()`.
        chip: that it was compiled for.
        mesh: the program's, to name the axes of collectives and to see which cross slices; None: of a
            foreign program.
        kernel_seconds: seconds of one call of a Pallas kernel; None: each kernel is compiled alone, once, and
            its schedule kept in the user's cache.

    Raises:
        PlanError: the text is no scheduled program of a TPU, or a loop's length depends on data.
    """
    if chip.clock is None:
        raise PlanError(
            f"{chip.name}: the compiler's cycles are read for TPUs only; GPUs have the analytic model"
        )
    program = parse_program(text)
    if "is_scheduled=true" not in program.header:
        raise PlanError(
            "this program is not scheduled, so its order and cost are unknown. What is read is `as_text()` "
            "of what `.compile()` returns, not of what `.lower()` returns"
        )
    kernel_seconds = kernel_seconds or scheduled_seconds
    axes: Mapping[str, int] = dict(mesh.shape) if mesh is not None else {}
    slices = [_slice_of(d) for d in mesh.devices.flat] if mesh is not None else []
    reader = _Reader(program, chip, Wiring(chip, axes, slices), kernel_seconds)
    cost = reader.walk(Scope(program, program.computations[program.entry]), 1)
    return _reading(cost, reader)


@dataclass
class _Cost:
    """What part of a program comes to.

    Attributes:
        operations: in the order of the schedule.
        found: collectives.
        busy: seconds of the operations.
        waited: seconds that asynchronous collectives take longer than what runs between start and end.
    """

    operations: list[Operation] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    busy: float = 0.0
    waited: float = 0.0

    def add(self, operation: Operation) -> None:
        """One more operation."""
        self.operations.append(operation)
        self.busy += operation.seconds

    def extend(self, more: _Cost) -> None:
        """All of a computation inside of this one."""
        self.operations += more.operations
        self.found += more.found
        self.busy += more.busy
        self.waited += more.waited

    def seconds(self) -> float:
        """To choose among branches: everything added up."""
        return self.busy + sum(f.collective.seconds for f in self.found)


class _Reader:
    """Walks the schedule."""

    def __init__(
        self, program: Program, chip: Chip, wiring: Wiring, kernel_seconds: KernelSeconds
    ) -> None:
        self.program = program
        self.chip = chip
        self.wiring = wiring
        self.kernel_seconds = kernel_seconds
        self.kernels: dict[str, Counter[str]] = {}  # how → calls by name
        self.beside: Counter[str] = Counter()  # run on another core, not charged
        self.averaged = False  # whether some loop's length depends on data

    def walk(self, scope: Scope, times: int) -> _Cost:
        """Cost of a computation that runs `times` times."""
        cost = _Cost()
        # By the name of a start: its seconds, and what was busy then.
        running: dict[str, tuple[float, float]] = {}
        for instruction in scope.computation.instructions:
            if instruction.opcode.endswith("-done"):
                seconds, then = running.pop(_start_of(instruction, scope.computation), (0.0, 0.0))
                cost.waited += max(0.0, seconds - (cost.busy - then))
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith("-update"):
                before = len(cost.found)
                self._add(cost, instruction, scope, times)
                if instruction.opcode.endswith("-start") or instruction.opcode == "send":
                    sent = sum(f.collective.seconds for f in cost.found[before:])
                    running[instruction.name] = (sent, cost.busy)
        return cost

    def _add(self, cost: _Cost, instruction: Instruction, scope: Scope, times: int) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            trips = round(times * trip_count(instruction, scope))
            self.averaged |= expected_trips(instruction) is not None
            body = self.program.computations[instruction.attribute("body") or ""]
            if trips:
                cost.extend(self.walk(scope.of_loop(instruction, body), trips))
        elif opcode == "conditional":
            branches = scope.branches(instruction)
            cost.extend(max((self.walk(b, times) for b in branches), key=_Cost.seconds))
        elif opcode == "call":
            cost.extend(self.walk(scope.inside(instruction), times))
        elif is_kernel(instruction):
            cost.add(self._kernel(instruction, scope, times))
        else:
            found = find_collectives(
                instruction, scope.computation, self.program, times, self.wiring
            )
            cost.found += found
            operation = self._operation(instruction, scope.computation, times, bool(found))
            if operation is not None:
                cost.add(operation)

    def _operation(
        self, instruction: Instruction, computation: Computation, times: int, sends: bool
    ) -> Operation | None:
        """Other than kernels; None for what is charged as a collective or runs beside."""
        if instruction.opcode in ON_OTHER_CORES:
            if not sends:
                self.beside[instruction.opcode] += times
            return None
        cycles = _cycles(instruction)
        if cycles is not None and self.chip.clock:
            seconds = cycles / self.chip.clock
        elif sends or instruction.opcode in ("custom-call", "send"):
            return None
        else:
            moved = moved_bytes(instruction, computation, self.program)
            seconds = moved / self.chip.memory_bandwidth
        kind = "matmul" if _has_matmul(instruction, self.program) else "other"
        return self._named(instruction, kind, times, seconds, estimated=cycles is not None)

    def _kernel(self, instruction: Instruction, scope: Scope, times: int) -> Operation:
        call = kernel_call(instruction, scope)
        found: KernelTime = self.kernel_seconds(call, self.chip)
        self.kernels.setdefault(found.how, Counter())[call.name] += times
        return self._named(instruction, "kernel", times, found.seconds, estimated=True)

    def _named(
        self, instruction: Instruction, kind: str, times: int, seconds: float, *, estimated: bool
    ) -> Operation:
        source, module = self._origin(instruction)
        return Operation(
            name=instruction.name,
            kind=kind,
            times=times,
            seconds=seconds * times,
            source=source,
            module=module,
            shape=instruction.shape,
            estimated=estimated,
        )

    def _origin(self, instruction: Instruction) -> tuple[str, str]:
        """Source and module; of a fusion that does not say, those of its result or its matmul."""
        candidates = [instruction]
        if instruction.opcode == "fusion":
            for fused in self.program.called(instruction):
                candidates += [fused.root, *reversed(fused.instructions)]
        for candidate in candidates:
            source = self.program.frames.source(candidate.attributes)
            if source or candidate.op_name:
                return source, candidate.op_name
        return "", ""


def _reading(cost: _Cost, reader: _Reader) -> Reading:
    collectives = settle(cost.found)

    def total(kind: str) -> float:
        return sum(o.seconds for o in cost.operations if o.kind == kind)

    matmuls, elementwise, kernels = total("matmul"), total("other"), total("kernel")
    blocking = sum(c.seconds for c in collectives if not c.is_overlapped)
    overlapped = sum(c.seconds for c in collectives if c.is_overlapped)
    time = StepTime(
        matmuls=matmuls,
        elementwise=elementwise,
        kernels=kernels,
        blocking=blocking,
        overlapped=overlapped,
        exposed=max(cost.waited, overlapped - matmuls - elementwise - kernels),
    )
    return Reading(
        time=time,
        operations=sorted(cost.operations, key=lambda o: -o.seconds),
        collectives=sorted(collectives, key=lambda c: -c.wire_bytes),
        notes=_notes(cost, reader),
    )


def _notes(cost: _Cost, reader: _Reader) -> list[str]:
    notes = []
    unknown = [o for o in cost.operations if not o.estimated]
    if unknown:
        notes.append(
            f"{sum(o.times for o in unknown)} operations without the compiler's estimate are charged by "
            f"their bytes over memory bandwidth: {sum(o.seconds for o in unknown):.4f} s"
        )
    if any("windowed_dot_general_body" in name for name in reader.program.computations):
        notes.append(
            "the compiler cuts gathers into steps between matmuls, which makes those slower; "
            "parallel.compiler_options.xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000 leaves them whole, "
            "which was faster where it was tried; with a tensor axis it was not tried (docs/memory.md)"
        )
    if reader.averaged:
        notes.append(
            "attention's loops over blocks of keys skip what documents hide; they are counted as if each row were "
            "one document"
        )
    for how, names in reader.kernels.items():
        calls = ", ".join(f"{count} × {name}" for name, count in names.items())
        notes.append(f"kernels by {how}: {calls}")
    if reader.beside:
        notes.append(
            f"{sum(reader.beside.values())} operations run on the SparseCores beside the schedule and are "
            "not charged"
        )
    return notes


def _start_of(done: Instruction, computation: Computation) -> str:
    """Name of the instruction that began what this one ends."""
    name = done.operands[0] if done.operands else ""
    while (inner := computation.by_name.get(name)) and inner.opcode.endswith("-update"):
        name = inner.operands[0]
    return name


def _cycles(instruction: Instruction) -> int | None:
    """The compiler's estimate; None: there is none."""
    text = instruction.config("estimated_cycles")
    if text is None or not text.isdigit() or int(text) >= _LIMIT:
        return None
    return int(text)


def _has_matmul(instruction: Instruction, program: Program) -> bool:
    if instruction.opcode in ("convolution", "dot"):
        return True
    if instruction.opcode != "fusion":
        return False
    return any(
        _has_matmul(inner, program)
        for fused in program.called(instruction)
        for inner in fused.instructions
    )


def _slice_of(device: object) -> int:
    return int(getattr(device, "slice_index", 0) or 0)
