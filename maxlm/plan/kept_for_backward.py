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

import re
from dataclasses import dataclass, field

from maxlm.plan.layouts import ArrayType, array_types

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?<=[)\]} ])([a-z][\w\-]*)\((.*)$")
_NAMED = re.compile(r"%([\w.\-]+)")
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


@dataclass
class _Instruction:
    name: str
    opcode: str
    type: str
    operands: list[str]
    rest: str


@dataclass
class _Computation:
    root: str = ""
    instructions: dict[str, _Instruction] = field(default_factory=dict)


def kept_for_backward(text: str, parameters: set[tuple[int, ...]]) -> Kept:
    """Read a program.

    Args:
        text: `compiled.as_text()`.
        parameters: shapes that parameters have on one device.
    """
    computations = _parse(text)
    activations: dict[tuple[str, str], ArrayType] = {}
    gradients: dict[tuple[str, str], ArrayType] = {}
    for name, computation in computations.items():
        for loop in computation.instructions.values():
            if loop.opcode != "while":
                continue
            types = array_types(loop.type)
            written = _written(loop, computations)
            if "transpose(" in loop.rest:
                sources = _sources(loop, computation, computations)
                for index, source in sources.items():
                    activations[name, source] = types[index]
                written -= set(sources)
            elif "jvp(" in loop.rest:
                continue
            for index in written:
                if types[index].shape in parameters and types[index].space == 0:
                    gradients[name, f"{loop.name}/{index}"] = types[index]
    kept = [kept for kept in activations.values()]
    return Kept(
        activations=sum(array.bytes for array in kept if array.space == 0),
        gradients=sum(array.bytes for array in gradients.values()),
        host=sum(array.bytes for array in kept if array.space == _HOST),
    )


def _sources(
    loop: _Instruction, computation: _Computation, computations: dict[str, _Computation]
) -> dict[int, str]:
    """Elements of a backward loop's tuple that a forward loop beside it wrote: index → which."""
    initial = computation.instructions.get(loop.operands[0])
    if initial is None or initial.opcode != "tuple":
        return {}
    found = {}
    for index, operand in enumerate(initial.operands):
        origin = _origin(operand, computation)
        if origin is None or origin.opcode != "get-tuple-element":
            continue
        forward = computation.instructions.get(origin.operands[0])
        if forward is None or forward.opcode != "while" or "transpose(" in forward.rest:
            continue
        element = _element(origin)
        if element in _written(forward, computations):
            found[index] = f"{forward.name}/{element}"
    return found


def _origin(name: str, computation: _Computation) -> _Instruction | None:
    """What an operand is before it was copied or given another shape."""
    seen = computation.instructions.get(name)
    while seen is not None and seen.opcode in _PASSED_ON and seen.operands:
        seen = computation.instructions.get(seen.operands[0])
    return seen


def _written(loop: _Instruction, computations: dict[str, _Computation]) -> set[int]:
    """Elements of a loop's tuple that its body does not hand on as they came."""
    match = re.search(r"body=%([\w.\-]+)", loop.rest)
    body = computations.get(match[1]) if match else None
    if body is None or (root := body.instructions.get(body.root)) is None:
        return set()
    changed = set()
    for index, operand in enumerate(root.operands):
        origin = _origin(operand, body)
        handed_on = (
            origin is not None
            and origin.opcode == "get-tuple-element"
            and _element(origin) == index
            and body.instructions[origin.operands[0]].opcode == "parameter"
        )
        if not handed_on:
            changed.add(index)
    return changed


def _element(instruction: _Instruction) -> int:
    match = re.search(r"index=(\d+)", instruction.rest)
    return int(match[1]) if match else -1


def _parse(text: str) -> dict[str, _Computation]:
    """Instructions by computation; a line that does not begin one continues the last."""
    computations: dict[str, _Computation] = {}
    current: _Computation | None = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = _Computation()
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[2], re.sub(r"/\*.*?\*/", "", match[3]))
            if instruction is None:
                continue
            current.instructions[instruction.name] = instruction
            if match[1]:
                current.root = instruction.name
    return computations


def _instruction(name: str, text: str) -> _Instruction | None:
    match = _OPCODE.search(text)
    if match is None:
        return None
    inside, _, rest = match[2].partition(")")
    kind = text[: match.start()].strip()
    return _Instruction(name, match[1], kind, _NAMED.findall(inside), rest)
