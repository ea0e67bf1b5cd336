"""Pallas kernels of a compiled program: what was called with which arrays, and a rule for its seconds.

In: a `tpu_custom_call` of the schedule; out: a `KernelCall`, which a scheduler of kernels turns into
seconds (`kernel_schedule.py`). For a kernel that cannot be scheduled alone there is a rule: its FLOPs at a
stated part of the chip's peak, or its bytes over memory bandwidth, whichever takes longer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from maxlm.parallel.chips import Chip
from maxlm.plan.reading.constants import Scope
from maxlm.plan.reading.hlo import Instruction
from maxlm.plan.reading.shapes import Array, arrays, memory_bytes

# Half of the peak: what splash attention's forward reaches by its schedule at block 512, and a
# grouped matmul whose groups end inside tiles does not exceed by much.
EFFICIENCY = 0.5


@dataclass(frozen=True)
class KernelCall:
    """A call of a Pallas kernel.

    Attributes:
        name: the kernel's, without the number that the compiler appends.
        operands: arrays that it is given.
        results: arrays that it returns.
        moved_bytes: of those of them that lie in the device's memory.
        config: `backend_config`, JSON text that holds the kernel's code.
        blocks: the table by which it skips blocks (0: skip), flat; None: it has none, or it is not
            a constant.
        is_masked: whether there is such a table.
    """

    name: str
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    moved_bytes: int
    config: str
    blocks: tuple[int, ...] | None
    is_masked: bool


@dataclass(frozen=True)
class KernelTime:
    """Seconds of one call, and for people how they were found."""

    seconds: float
    how: str


KernelSeconds = Callable[[KernelCall, Chip], KernelTime]


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel."""
    return instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.attributes


def kernel_call(instruction: Instruction, scope: Scope) -> KernelCall:
    """What a `tpu_custom_call` is given.

    Args:
        instruction: of the schedule.
        scope: of its computation; through it the mask's table is found.
    """
    known = scope.computation.by_name
    given = [known[operand].shape for operand in instruction.operands if operand in known]
    operands = tuple(array for shape in given for array in arrays(shape))
    # Splash attention's tables are the only int8 arrays of three dims: which block comes next, and
    # which blocks are computed (0: none of it, 1: in part, 2: whole).
    tables = [i for i, array in enumerate(operands) if array.dtype == "s8" and len(array.dims) == 3]
    blocks = None
    if len(tables) > 1 and len(operands) == len(instruction.operands):
        text = scope.constant(instruction.operands[tables[1]])
        numbers = [int(n) for n in re.findall(r"-?\d+", text or "")]
        if len(numbers) == 1:  # printed once where all are equal
            numbers *= operands[tables[1]].size
        blocks = tuple(numbers) if len(numbers) == operands[tables[1]].size else None
    return KernelCall(
        name=re.sub(r"(\.\d+|\.clone|\.remat\d*)+$", "", instruction.name),
        operands=operands,
        results=tuple(arrays(instruction.shape)),
        moved_bytes=sum(map(memory_bytes, given)) + memory_bytes(instruction.shape),
        config=_json(instruction.attributes),
        blocks=blocks,
        is_masked=len(tables) > 1,
    )


def executed_share(call: KernelCall) -> float:
    """Part of the grid's blocks that the mask leaves: by its table, or that of a causal square."""
    if not call.is_masked:
        return 1.0
    if call.blocks is not None:
        return sum(block != 0 for block in call.blocks) / len(call.blocks)
    table = next(array for array in call.operands if array.dtype == "s8" and len(array.dims) == 3)
    rows = max(table.dims[-2:])
    return (rows + 1) / (2 * rows)


def seconds_by_rule(call: KernelCall, chip: Chip) -> KernelTime:
    """FLOPs at `EFFICIENCY` of the peak, or bytes over memory bandwidth, whichever takes longer.

    Args:
        call: of the kernel.
        chip: whose peak and bandwidth count.
    """
    by_bytes = call.moved_bytes / chip.memory_bandwidth
    flops = kernel_flops(call)
    if flops is None or flops / (chip.peak * EFFICIENCY) <= by_bytes:
        return KernelTime(by_bytes, "their bytes over memory bandwidth")
    return KernelTime(
        flops / (chip.peak * EFFICIENCY), f"their FLOPs at {EFFICIENCY:.0%} of the peak"
    )


def kernel_flops(call: KernelCall) -> float | None:
    """FLOPs of the matmuls of kernels that are known; None of others.

    Attention has 2 matmuls forward, 3 for the queries' gradient and 4 for the keys' and values', 5 where
    one kernel makes all three gradients, each `2 × heads × length² × head_dim`, over blocks that the mask
    leaves. A grouped matmul has `2 M K N` whatever the groups.
    """
    floats = [a for a in call.operands if a.dtype in ("bf16", "f32", "f16") and len(a.dims) > 1]
    if "splash" in call.name or "attention" in call.name:
        queries = next((a for a in floats if len(a.dims) > 2 and a.dims[-1] >= 64), None)
        if queries is None:
            return None
        *heads, length, head_dim = queries.dims
        backward = {"dq": 3, "dkv": 5 if len(call.results) == 3 else 4, "bwd": 5}
        matmuls = next((n for key, n in backward.items() if key in call.name), 2)
        whole = matmuls * 2 * math.prod(heads) * float(length) ** 2 * head_dim
        return whole * executed_share(call)
    if "gmm" in call.name and len(floats) >= 2:
        left, right = floats[0], floats[1]
        if len(right.dims) == 3:  # rows × their group's matrix
            *_, wide, narrow = sorted((*right.dims[1:],))
            return 2.0 * left.dims[0] * wide * narrow
        return 2.0 * left.size * right.dims[-1] if right.dims[0] in left.dims else None
    return None


def _json(attributes: str) -> str:
    """The text of `backend_config={…}`."""
    start = attributes.find("backend_config={")
    return attributes[start + len("backend_config=") :].strip() if start >= 0 else ""
