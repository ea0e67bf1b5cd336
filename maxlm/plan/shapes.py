"""Reads the shapes of a compiled program's results: as people want to see them, and their bytes.

In: what the compiler writes, such as `bf16[2,8192]{1,0:T(8,128)(2,1)}` or `(f32[8], s32[])`.
"""

from __future__ import annotations

import math
import re

_ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def short_shape(shape: str) -> str:
    """The shape without the compiler's layout: `bf16[2,8192]`."""
    kept, depth = [], 0
    for character in shape:
        depth += character == "{"
        if not depth:
            kept.append(character)
        depth = max(0, depth - (character == "}"))
    return "".join(kept)


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays of a shape, without padding; 0 where none is recognised."""
    total = 0
    for kind, bits, dims in _ARRAY.findall(short_shape(shape)):
        if kind == "token":
            continue
        size = math.prod(int(dim) for dim in dims.split(",") if dim)
        total += (size * (int(bits) if bits else 8) + 7) // 8
    return total
