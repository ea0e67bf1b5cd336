"""Memory of a compiled step on one device, by kind, against what the chip has for a program.

In: the train program, what the compiler made of it, and the chip; out: a `Memory`.

- Parameters and optimizer: exactly, by shape and sharding, plus the padding of the layout that the
  compiler chose (`shapes.py`); with the batch they are `argument_size_in_bytes`.
- Activations and gradients: what the loops carry (`kept_for_backward.py`).
- Temporaries: the rest of `temp_size_in_bytes`, so what those two could not tell apart too.
- Other: the batch, counters, outputs that are not donated (metrics), and the program's code.

What a program may use is the limit that the compiler itself applies (`maxlm/parallel/chips.py`): what it
reserves for itself is off already.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from maxlm.parallel.chips import GIB, Chip
from maxlm.plan.compiling.program import TrainProgram
from maxlm.plan.compiling.store import Compiled
from maxlm.plan.reading.kept_for_backward import kept_for_backward
from maxlm.plan.reading.shapes import Array, entry_arguments
from maxlm.plan.result import Memory

_DTYPES = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# "the total memory required for HLO temporaries (25.39G)", which counts arguments too, and
# "Used 17.46G of 15.75G hbm".
_NEEDED = re.compile(r"(?:HLO temporaries \(|Used )([\d.]+)([KMGT]?)")


def compiled_memory(program: TrainProgram, compiled: Compiled, chip: Chip) -> Memory:
    """Bytes by kind; where the program was refused, those that are known, and the rest as temporaries."""
    if compiled.out_of_memory:
        return _refused_memory(program, compiled.out_of_memory, chip)
    text, sizes = compiled.text, compiled.memory
    leaves = _local_leaves(program)
    arguments = _matched(leaves, entry_arguments(text))
    parts = dict.fromkeys(("params", "optimizer", "other"), 0)
    for (part, _, _), argument in zip(leaves, arguments, strict=True):
        parts[part] += argument
    shapes = {shape for part, shape, _ in leaves if part == "params"}
    kept = kept_for_backward(text, shapes)
    temporaries = sizes["temp_size_in_bytes"]
    activations = min(kept.activations, temporaries)
    gradients = min(kept.gradients, temporaries - activations)
    written = sizes["output_size_in_bytes"] - sizes["alias_size_in_bytes"]
    arguments_left = sizes["argument_size_in_bytes"] - parts["params"] - parts["optimizer"]
    return Memory(
        parameters=parts["params"],
        optimizer=parts["optimizer"],
        gradients=gradients,
        activations=activations,
        temporaries=temporaries - activations - gradients,
        other=arguments_left + written + sizes["generated_code_size_in_bytes"],
        host=sum(size for name, size in sizes.items() if re.match("host_(arg|temp|out)", name)),
        capacity=chip.usable_bytes,
    )


def state_memory(program: TrainProgram, chip: Chip) -> Memory:
    """Parameters, optimizer and batch alone: what no compiler can make smaller."""
    parts = dict.fromkeys(("params", "optimizer", "other"), 0)
    for part, shape, dtype in _local_leaves(program):
        parts[part] += math.prod(shape) * dtype.itemsize
    return Memory(
        parameters=parts["params"],
        optimizer=parts["optimizer"],
        gradients=0,
        activations=0,
        temporaries=0,
        other=parts["other"],
        host=0,
        capacity=chip.usable_bytes,
    )


def chips_for_state(program: TrainProgram, chip: Chip) -> int:
    """Over how many chips the state, spread evenly, leaves each device as much as it may use."""
    leaves = jax.tree.leaves(program.layout)
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return math.ceil(whole / (chip.usable_bytes * chip.devices_per_chip))


def needed_bytes(refusal: str) -> int | None:
    """How much the compiler says that a program needs; None where it does not say."""
    match = _NEEDED.search(refusal)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None


def _refused_memory(program: TrainProgram, refusal: str, chip: Chip) -> Memory:
    known = state_memory(program, chip)
    # Where it names no size, it is larger than the device.
    needed = needed_bytes(refusal) or chip.usable_bytes + GIB // 1024
    return Memory(
        parameters=known.parameters,
        optimizer=known.optimizer,
        gradients=0,
        activations=0,
        temporaries=max(0, needed - known.total),
        other=known.other,
        host=0,
        capacity=known.capacity,
    )


def _local_leaves(program: TrainProgram) -> list[tuple[str, tuple[int, ...], Any]]:
    """`(part, shape, dtype)` of every array of state and batch on one device, as the step takes them."""
    state = program.layout
    parts = {"params": "params", "variables": "params", "average": "optimizer"}
    parts |= {"opt_state": "optimizer"}
    found = [
        (parts.get(name, "other"), leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        for name, tree in state._asdict().items()
        for leaf in jax.tree.leaves(tree)
    ]
    return found + [
        ("other", leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        for leaf in jax.tree.leaves(program.batch)
    ]


def _matched(leaves: list[tuple[str, tuple[int, ...], Any]], arguments: list[Array]) -> list[int]:
    """Bytes of each leaf in the compiled program, padding and all; of one it does not take, its own.

    The program takes the leaves in their order, and leaves out those that it does not read.
    """
    found, left = [], list(arguments)
    for _, shape, dtype in leaves:
        same = bool(left) and left[0].dims == shape
        if same and left[0].dtype == _DTYPES.get(dtype.name, left[0].dtype):
            found.append(left.pop(0).padded_bytes)
        else:
            found.append(math.prod(shape) * dtype.itemsize)
    return found
