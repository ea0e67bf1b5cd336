"""Bytes that an operation without an estimate moves to and from the device's memory.

In: an instruction and its computation; out: bytes read and written. Of an array that is only sliced or
updated in place, what moves is the slice; what lies in memory on the chip moves nothing.
"""

from __future__ import annotations

from maxlm.plan.reading.hlo import Computation, Instruction, Program
from maxlm.plan.reading.shapes import memory_bytes

_SLICES = ("slice", "dynamic-slice", "gather")
_VIEWS = ("bitcast", "get-tuple-element", "reshape")


def moved_bytes(instruction: Instruction, computation: Computation, program: Program) -> int:
    """Bytes read and written in one run.

    Args:
        instruction: one that the compiler gave no estimate.
        computation: which holds it and its operands.
        program: the module.
    """
    if instruction.opcode == "fusion":
        return _of_fusion(instruction, computation, program)
    shapes = [
        computation.by_name[o].shape for o in instruction.operands if o in computation.by_name
    ]
    sizes = [memory_bytes(shape) for shape in shapes]
    result = memory_bytes(instruction.shape)
    if instruction.opcode in _SLICES:
        return 2 * result + sum(sizes[1:])
    if instruction.opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    if instruction.opcode == "scatter":  # rows are read, added to and written
        return 3 * sizes[-1] + sum(sizes[1:-1])
    if instruction.opcode in ("broadcast", "iota", "rng-bit-generator"):
        return result
    return sum(sizes) + result


def _of_fusion(fusion: Instruction, computation: Computation, program: Program) -> int:
    (fused, *_) = program.called(fusion)
    read = 0
    for number, operand in enumerate(fusion.operands):
        given = computation.by_name.get(operand)
        if given is not None and number in fused.parameters:
            whole = memory_bytes(given.shape)
            read += min(whole, _read_of(fused.parameters[number].name, fused, program, whole))
    return read + _written(fused, fused.root, fusion.shape)


def _read_of(name: str, fused: Computation, program: Program, whole: int) -> int:
    """Bytes that a fused computation reads of a parameter of `whole` bytes."""
    read = 0
    for user in fused.instructions:
        if name not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == name:
            read += memory_bytes(user.shape)
        elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == name:
            continue  # updated in place
        elif user.opcode in _VIEWS:
            read += _read_of(user.name, fused, program, whole)
        elif user.opcode == "fusion":
            (inner, *_) = program.called(user)
            numbers = [i for i, operand in enumerate(user.operands) if operand == name]
            read += sum(_read_of(inner.parameters[i].name, inner, program, whole) for i in numbers)
        else:
            return whole
    return read


def _written(fused: Computation, result: Instruction, shape: str) -> int:
    """Bytes that a fused computation writes of `result`, whose shape outside is `shape`."""
    if result.opcode == "tuple":
        parts = [fused.by_name[operand] for operand in result.operands]
        return sum(_written(fused, part, part.shape) for part in parts)
    if not memory_bytes(shape):
        return 0  # it stays on the chip
    while result.opcode in _VIEWS and result.operands:
        result = fused.by_name[result.operands[0]]
    if result.opcode in ("dynamic-update-slice", "scatter"):
        update = fused.by_name[result.operands[1 if result.opcode[0] == "d" else -1]]
        return memory_bytes(update.shape) * (1 if result.opcode[0] == "d" else 2)
    return 0 if result.opcode == "parameter" else memory_bytes(shape)
