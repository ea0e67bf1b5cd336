"""What a compiled step keeps from its forward for its backward pass, and the gradients beside it.

In: the text of a scheduled TPU program; out: bytes on one device. The layers are a loop forward and a
loop backward. A loop's carried tuple is alive as long as the loop runs, so of the backward loop's tuple

- an element that comes from a forward loop, which wrote it (not one that it only read, such as
  weights), is an activation kept for the backward pass;
- an element that the backward loop writes itself, of a type that some parameter has on this device, is a
  gradient; and so is what the loop over micro-batches carries of such a type.

All of these are alive at once while the backward loop runs. What goes from forward to backward outside of
loops (the last hidden states, the embeddings), and gradients of parameters outside of them, is not told
apart from other temporaries. Nor is anything of unrolled layers, which have no loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.plan.reading.hlo import Computation, Instruction, Program, parse_program
from maxlm.plan.reading.shapes import Array, arrays

_PASSED_ON = ("copy", "bitcast", "copy-start", "copy-done", "optimization-barrier", "reshape")
_HOST = 5


@dataclass(frozen=True)
class Kept:
    """Bytes on one device.

    Attributes:
        activations: kept for the backward pass in the device's main memory.
        gradients: that the loops carry.
        host: activations kept in the host's memory.
    """

    activations: int = 0
    gradients: int = 0
    host: int = 0


def kept_for_backward(text: str, parameters: set[tuple[int, ...]]) -> Kept:
    """Read a program.

    Args:
        text: `compiled.as_text()`.
        parameters: shapes that parameters have on one device.
    """
    program = parse_program(text)
    activations: dict[tuple[str, str], Array] = {}
    gradients: dict[tuple[str, str], Array] = {}
    for name, computation in program.computations.items():
        for loop in computation.instructions:
            if loop.opcode != "while":
                continue
            types = arrays(loop.shape)
            written = _written(loop, program)
            if "transpose(" in loop.op_name:
                sources = _sources(loop, computation, program)
                for index, source in sources.items():
                    activations[name, source] = types[index]
                written -= set(sources)
            elif "jvp(" in loop.op_name:
                continue
            for index in written:
                if types[index].dims in parameters and types[index].space == 0:
                    gradients[name, f"{loop.name}/{index}"] = types[index]
    kept = activations.values()
    return Kept(
        activations=sum(array.padded_bytes for array in kept if array.space == 0),
        gradients=sum(array.padded_bytes for array in gradients.values()),
        host=sum(array.padded_bytes for array in kept if array.space == _HOST),
    )


def _sources(loop: Instruction, computation: Computation, program: Program) -> dict[int, str]:
    """Elements of a backward loop's tuple that a forward loop beside it wrote: index → which."""
    initial = computation.by_name.get(loop.operands[0])
    if initial is None or initial.opcode != "tuple":
        return {}
    found = {}
    for index, operand in enumerate(initial.operands):
        origin = _origin(operand, computation)
        if origin is None or origin.opcode != "get-tuple-element":
            continue
        forward = computation.by_name.get(origin.operands[0])
        if forward is None or forward.opcode != "while" or "transpose(" in forward.op_name:
            continue
        element = _element(origin)
        if element in _written(forward, program):
            found[index] = f"{forward.name}/{element}"
    return found


def _origin(name: str, computation: Computation) -> Instruction | None:
    """What an operand is before it was copied or given another shape."""
    seen = computation.by_name.get(name)
    while seen is not None and seen.opcode in _PASSED_ON and seen.operands:
        seen = computation.by_name.get(seen.operands[0])
    return seen


def _written(loop: Instruction, program: Program) -> set[int]:
    """Elements of a loop's tuple that its body does not hand on as they came."""
    body = program.computations.get(loop.attribute("body") or "")
    if body is None:
        return set()
    changed = set()
    for index, operand in enumerate(body.root.operands):
        origin = _origin(operand, body)
        handed_on = (
            origin is not None
            and origin.opcode == "get-tuple-element"
            and _element(origin) == index
            and body.by_name[origin.operands[0]].opcode == "parameter"
        )
        if not handed_on:
            changed.add(index)
    return changed


def _element(instruction: Instruction) -> int:
    return int(instruction.attribute("index") or -1)
