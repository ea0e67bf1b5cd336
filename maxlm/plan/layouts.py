"""Bytes that an array takes on a TPU, from the type that the compiler writes for it.

In: `f32[4,384,32]{1,2,0:T(8,128)}`; out: its bytes and in which memory it lies. The two dims that
change fastest are cut into tiles, such as 8×128, and a dim that does not fill its last tile is padded:
that is by how much the state on a TPU is larger than its numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
TYPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class ArrayType:
    """An array of the compiled program.

    Attributes:
        dtype: as the compiler writes it, such as `bf16`.
        shape: on one device.
        minor_to_major: its dims, the one that changes fastest first.
        tile: sizes that the fastest dims are padded to multiples of, slowest of them first.
        space: 0 is the device's main memory, 1 its fast memory beside the cores, 5 the host's.
    """

    dtype: str
    shape: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """With padding."""
        dims = [self.shape[dim] for dim in self.minor_to_major]  # fastest first
        padded = list(dims) + [1] * (len(self.tile) - len(dims))
        for place, size in enumerate(reversed(self.tile)):
            padded[place] = math.ceil(padded[place] / size) * size
        return math.prod(padded) * _BITS.get(self.dtype, 8) // 8

    @property
    def unpadded_bytes(self) -> int:
        """Of its numbers alone."""
        return math.prod(self.shape) * _BITS.get(self.dtype, 8) // 8


def array_types(text: str) -> list[ArrayType]:
    """The types in a piece of a program's text, in their order; a tuple's are its elements."""
    found = []
    for dtype, dims, order, layout in TYPE.findall(text):
        shape = tuple(int(d) for d in dims.split(",") if d)
        given = tuple(int(d) for d in order.split(",") if d)
        tile, space = _TILE.search(layout), _SPACE.search(layout)
        found.append(
            ArrayType(
                dtype=dtype,
                shape=shape,
                minor_to_major=given or tuple(reversed(range(len(shape)))),
                tile=tuple(int(d) for d in tile[1].split(",")) if tile else (),
                space=int(space[1]) if space else 0,
            )
        )
    return found


def entry_arguments(text: str) -> list[ArrayType]:
    """Types of the program's arguments, in their order. Raises ValueError where none are stated."""
    start = text.find("entry_computation_layout={(")
    end = text.find(")->", start)
    if start < 0 or end < 0:
        raise ValueError("no entry_computation_layout: not the text of a compiled program")
    return array_types(re.sub(r"/\*.*?\*/", "", text[start:end]))
