"""How often a loop of a compiled program runs.

In: a `while` instruction and the scope that holds it; out: its trips. XLA writes `known_trip_count` on some;
of the others the condition compares a counter of the state with a limit, and the body adds a step to
it. A loop whose length depends on data has no trip count. Attention's over blocks of keys say how often they
run on average (`EXPECTED_TURNS`); for any other an error says so.
"""

from __future__ import annotations

import re

from maxlm.errors import PlanError
from maxlm.kernels.attention.turns import EXPECTED_TURNS
from maxlm.plan.reading.constants import Scope
from maxlm.plan.reading.hlo import Computation, Instruction

_EXPECTED = re.compile(EXPECTED_TURNS + r"(\d+(?:\.\d+)?)/while$")
_TURNED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}


def trip_count(loop: Instruction, scope: Scope) -> float:
    """How often a loop's body runs, on average where that depends on data.

    Args:
        loop: a `while` instruction.
        scope: of the computation that holds it.

    Raises:
        PlanError: the text does not say, because the length depends on data.
    """
    expected = expected_trips(loop)
    if expected is not None:
        return expected
    stated = re.search(r'"?known_trip_count"?:\{"n":"(\d+)"', loop.attributes)
    if stated:
        return int(stated.group(1))
    program = scope.program
    condition = program.computations.get(loop.attribute("condition") or "")
    body = program.computations.get(loop.attribute("body") or "")
    found = condition and body and _counted(loop, scope, condition, body)
    if found is None or found == "":
        source = program.frames.source(loop.attributes)
        raise PlanError(
            f"how often does the loop {loop.name} run ({loop.op_name or 'no name'}"
            f"{', ' + source if source else ''})? Its condition compares nothing that is a constant of "
            "the program, so its length depends on data. A step with such a loop has no time that is known "
            "beforehand"
        )
    assert isinstance(found, int)
    return found


def expected_trips(loop: Instruction) -> float | None:
    """How often a loop over blocks of keys runs, as attention says; None: it is no such loop."""
    found = _EXPECTED.search(loop.op_name or "")
    return float(found.group(1)) if found else None


def _counted(
    loop: Instruction, scope: Scope, condition: Computation, body: Computation
) -> int | None:
    """Trips of a loop that counts; None where it does not."""
    inside = scope.of_loop(loop, condition)
    compare, inside = _comparison(condition.root, inside)
    if compare is None or len(compare.operands) != 2:
        return None
    direction = compare.attribute("direction") or ""
    for counter, limit, way in (
        (*compare.operands, direction),
        (*reversed(compare.operands), _TURNED.get(direction, "")),
    ):
        bound = inside.integer(limit)
        index = _index_in_state(inside, counter)
        if bound is None or index is None:
            continue
        start = scope.initial(loop, index)
        first = start[1].integer(start[0].name) if start else None
        step = _step(body, index, scope.of_loop(loop, body))
        if first is None or not step:
            return None
        return _turns(first, bound, step, way)
    return None


def _comparison(root: Instruction, scope: Scope) -> tuple[Instruction | None, Scope]:
    """The comparison that a condition's result is, also inside a fusion."""
    while root.opcode in ("fusion", "call", "copy", "bitcast"):
        if root.opcode in ("fusion", "call"):
            scope = scope.inside(root)
            root = scope.computation.root
        else:
            root = scope.computation.by_name[root.operands[0]]
    return (root if root.opcode == "compare" else None), scope


def _index_in_state(scope: Scope, name: str) -> int | None:
    """Which element of the loop's state a condition's operand is."""
    instruction = scope.computation.by_name.get(name)
    while instruction is not None:
        if instruction.opcode == "get-tuple-element":
            source = scope.computation.by_name[instruction.operands[0]]
            return (
                int(instruction.attribute("index") or 0) if source.opcode == "parameter" else None
            )
        if instruction.opcode == "parameter":  # of a fusion: look at what it is given
            passed = scope.arguments(int(instruction.literal), None)
            if passed is None:
                return None
            instruction, scope = passed
        elif instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
            instruction = scope.computation.by_name.get(instruction.operands[0])
        else:
            return None
    return None


def _step(body: Computation, index: int, scope: Scope) -> int | None:
    """What a turn adds to the counter."""
    if body.root.opcode != "tuple" or index >= len(body.root.operands):
        return None
    found = scope.origin(body.root.operands[index])
    while found and found[0].opcode in ("fusion", "call"):
        inner = found[1].inside(found[0])
        found = inner.origin(inner.computation.root.name)
    if not found or found[0].opcode not in ("add", "subtract"):
        return None
    instruction, where = found
    known = [where.integer(operand) for operand in instruction.operands]
    sign = 1 if instruction.opcode == "add" else -1
    if known[1] is not None:
        return sign * known[1]
    return known[0] if sign == 1 else None


def _turns(first: int, bound: int, step: int, direction: str) -> int | None:
    """Trips of `for (i = first; i direction bound; i += step)`."""
    distance = bound - first
    if direction in ("LE", "GE"):
        distance += 1 if direction == "LE" else -1
    elif direction not in ("LT", "GT", "NE"):
        return None
    if (direction in ("LT", "LE") and step < 0) or (direction in ("GT", "GE") and step > 0):
        return None if distance * step < 0 else 0
    if direction == "NE" and distance % step:
        return None
    return max(0, -(-distance // step))
