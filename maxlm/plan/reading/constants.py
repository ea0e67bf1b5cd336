"""Scalars and small tables that a compiled program holds as constants, as far as they can be followed.

In: an instruction of a computation and what is known of that computation's parameters; out: the constant's
text, or the integer that a chain of copies, tuples, fusions and sums of constants comes to. What
depends on data is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maxlm.plan.reading.hlo import Computation, Instruction, Program

if TYPE_CHECKING:
    from collections.abc import Callable

# What hands its first operand on. A start hands on a tuple around it, of which the done takes the same.
_PASSES = frozenset(
    [
        "copy",
        "bitcast",
        "bitcast-convert",
        "convert",
        "reshape",
        "copy-start",
        "copy-done",
        "optimization-barrier",
        "async-start",
        "async-done",
        "async-update",
        "slice-start",
        "slice-done",
    ]
)


@dataclass
class Scope:
    """A computation, and where its parameters come from.

    Attributes:
        program: the module.
        computation: whose instructions are followed.
        arguments: by a parameter's number and the index into it if it is a tuple: the instruction
            that is passed, and the scope that holds it.
    """

    program: Program
    computation: Computation
    arguments: Callable[[int, int | None], tuple[Instruction, Scope] | None] = field(
        default=lambda number, index: None
    )

    def constant(self, name: str) -> str | None:
        """The text of the constant that an instruction hands on."""
        found = self.origin(name)
        return found[0].literal if found and found[0].opcode == "constant" else None

    def integer(self, name: str) -> int | None:
        """The integer that an instruction comes to."""
        found = self.origin(name)
        if found is None:
            return None
        instruction, scope = found
        if instruction.opcode == "constant":
            text = instruction.literal.strip().strip("{} ")
            return int(text) if text.lstrip("-").isdigit() else None
        if instruction.opcode in ("add", "subtract", "multiply"):
            left, right = (scope.integer(operand) for operand in instruction.operands)
            if left is None or right is None:
                return None
            return {"add": left + right, "subtract": left - right, "multiply": left * right}[
                instruction.opcode
            ]
        if instruction.opcode == "fusion":
            inner = scope.inside(instruction)
            return inner.integer(inner.computation.root.name)
        return None

    def origin(self, name: str) -> tuple[Instruction, Scope] | None:
        """The instruction that makes a value, and its scope; None where that is a loop or unknown."""
        instruction: Instruction | None = self.computation.by_name.get(name)
        while instruction is not None:
            if instruction.opcode in _PASSES and instruction.operands:
                instruction = self.computation.by_name.get(instruction.operands[0])
            elif instruction.opcode == "get-tuple-element":
                return self._element(instruction)
            elif instruction.opcode == "parameter":
                passed = self.arguments(int(instruction.literal), None)
                return passed[1].origin(passed[0].name) if passed else None
            else:
                return instruction, self
        return None

    def inside(self, caller: Instruction) -> Scope:
        """The scope of the computation that a fusion or call names."""
        (computation, *_) = self.program.called(caller)

        def argument(number: int, index: int | None) -> tuple[Instruction, Scope] | None:
            if number >= len(caller.operands):
                return None
            passed = self.computation.by_name.get(caller.operands[number])
            if index is not None and passed is not None:
                return self._of_tuple(passed, index)
            return (passed, self) if passed else None

        return Scope(self.program, computation, argument)

    def branches(self, conditional: Instruction) -> list[Scope]:
        """The scopes of the branches of a `conditional`."""

        def branch(computation: Computation, operand: str) -> Scope:
            def argument(number: int, index: int | None) -> tuple[Instruction, Scope] | None:
                passed = self.computation.by_name.get(operand)
                if passed is None or index is None:
                    return (passed, self) if passed else None
                return self._of_tuple(passed, index)

            return Scope(self.program, computation, argument)

        taken = self.program.called(conditional)
        return [branch(*pair) for pair in zip(taken, conditional.operands[1:], strict=True)]

    def of_loop(self, loop: Instruction, computation: Computation) -> Scope:
        """The scope of a loop's body or condition: only what no turn changes is known."""
        body_name = loop.attribute("body")
        body = self.program.computations[body_name or ""]

        def argument(number: int, index: int | None) -> tuple[Instruction, Scope] | None:
            if index is None or not _is_unchanged(body, index):
                return None
            return self.initial(loop, index)

        return Scope(self.program, computation, argument)

    def initial(self, loop: Instruction, index: int) -> tuple[Instruction, Scope] | None:
        """What a loop's state holds at an index before the first turn."""
        state = self.computation.by_name.get(loop.operands[0])
        return self._of_tuple(state, index) if state else None

    def _element(self, instruction: Instruction) -> tuple[Instruction, Scope] | None:
        index = int(instruction.attribute("index") or 0)
        source = self.computation.by_name.get(instruction.operands[0])
        found = self._of_tuple(source, index) if source else None
        return found[1].origin(found[0].name) if found else None

    def _of_tuple(self, source: Instruction, index: int) -> tuple[Instruction, Scope] | None:
        while source.opcode in _PASSES and source.operands:
            passed = self.computation.by_name.get(source.operands[0])
            if passed is None:
                return None
            source = passed
        if source.opcode == "tuple":
            element = self.computation.by_name.get(source.operands[index])
            return (element, self) if element else None
        if source.opcode == "parameter":
            return self.arguments(int(source.literal), index)
        if source.opcode == "while":
            body = self.program.computations[source.attribute("body") or ""]
            return self.initial(source, index) if _is_unchanged(body, index) else None
        return None


def _is_unchanged(body: Computation, index: int) -> bool:
    """Whether a loop's body hands the state's element on as it came."""
    if body.root.opcode != "tuple" or index >= len(body.root.operands):
        return False
    element = body.by_name.get(body.root.operands[index])
    return (
        element is not None
        and element.opcode == "get-tuple-element"
        and element.attribute("index") == str(index)
        and body.by_name[element.operands[0]].opcode == "parameter"
    )
