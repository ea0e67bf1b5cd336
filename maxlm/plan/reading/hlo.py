"""The text of a compiled program as computations and instructions, and where in the code each began.

In: `compiled.as_text()` of an XLA program after scheduling; out: a `Program`. Nothing here knows what
an instruction costs. The format is described at openxla.org/xla/operation_semantics; what TPUs add
(continued lines in a Pallas kernel's metadata, tables of stack frames) is read as libtpu 0.0.42 to 0.0.52 print
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from maxlm.errors import PlanError
from maxlm.plan.reading.stack_frames import StackFrames, read_stack_frames

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = ("calls", "to_apply", "body", "condition", "called_computations", "branch_computations")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without `%`.
        opcode: such as `fusion`.
        shape: of the result, with layout, such as `(bf16[8,128]{1,0:T(8,128)S(1)}, s32[])`.
        operands: names of instructions of the same computation.
        literal: what stands between the parentheses; of a constant or parameter, its value or number.
        attributes: all that follows, metadata and `backend_config` included.
        is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    def attribute(self, key: str) -> str | None:
        """A name or number among the attributes, such as `body=%x` or `channel_id=3`."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match.group(1) if match else None

    def config(self, key: str) -> str | None:
        """A quoted value of the backend's config by its key, whatever encloses it."""
        match = re.search(rf'"{key}":"([^"]*)"', self.attributes)
        return match.group(1) if match else None

    @cached_property
    def op_name(self) -> str:
        """Path of modules and functions in which it was traced; empty: not said."""
        match = re.search(r'metadata=\{[^}]*?op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclass
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(i.literal): i for i in self.instructions if i.opcode == "parameter"}


@dataclass
class Program:
    """A module.

    Attributes:
        header: the first line.
        computations: by name.
        entry: name of the one that runs.
        frames: where instructions' `stack_frame_id` point to.
    """

    header: str
    computations: dict[str, Computation]
    entry: str
    frames: StackFrames

    def called(self, instruction: Instruction) -> list[Computation]:
        """Computations that an instruction names: bodies, branches, fused ones, reductions."""
        names: list[str] = []
        for key in _CALLED:
            match = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", instruction.attributes)
            if match:
                names += re.findall(r"[\w.\-]+", match.group(1) or match.group(2))
        names += re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
        return [self.computations[name] for name in names if name in self.computations]

    @property
    def num_partitions(self) -> int:
        """Devices that the program is divided over."""
        match = re.search(r"num_partitions=(\d+)", self.header)
        return int(match.group(1)) if match else 1


def parse_program(text: str) -> Program:
    """Read a module.

    Raises:
        PlanError: there is no entry computation, or a line is not HLO.
    """
    lines = text.splitlines()
    computations: dict[str, Computation] = {}
    entry, current = "", None
    pending: list[str] = []

    def close() -> None:
        if pending and current is not None:
            current.instructions.append(_parse_instruction(" ".join(pending)))
        pending.clear()

    for line in lines[1:]:
        head = _HEAD.match(line)
        if head:
            close()
            current = computations.setdefault(head.group(2), Computation(head.group(2)))
            entry = head.group(2) if head.group(1) else entry
        elif re.match(r"^\}(, execution_thread=.*)?\s*$", line):
            close()
            current = None
        elif current is not None and _START.match(line):
            close()
            pending.append(line)
        elif pending:  # a Pallas kernel's metadata goes over several lines
            pending.append(line)
    if not entry:
        raise PlanError(
            f"this is no compiled program: no line begins with ENTRY among {len(lines)} (the first is "
            f"{lines[0][:60] if lines else ''!r}). What is read is `compiled.as_text()`"
        )
    return Program(lines[0], computations, entry, read_stack_frames(lines))


def _parse_instruction(line: str) -> Instruction:
    start = _START.match(line)
    assert start
    rest = line[start.end() :]
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, shape_end)
    if shape_end <= 0 or opcode is None:
        raise PlanError(f"cannot read this line of a compiled program: {line.strip()[:200]!r}")
    open_ = opcode.end() - 1
    close = _closing(rest, open_)
    inside = rest[open_ + 1 : close]
    code = opcode.group(1)
    valued = code in ("constant", "parameter", "iota")
    return Instruction(
        name=start.group(2),
        opcode=code,
        shape=rest[:shape_end],
        operands=() if valued else tuple(_NAME.findall(inside)),
        literal=inside if valued else "",
        attributes=rest[close + 1 :],
        is_root=bool(start.group(1)),
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis closes that opens at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    return len(text) - 1
