"""Bytes of arrays by the shapes that a compiled program prints, such as `bf16[8,128]{1,0:T(8,128)S(1)}`.

In: a shape, or the program's header; out: its arrays, with their numbers' bytes and those that a TPU takes.
The two dims that change fastest are cut into tiles, such as 8×128, and a dim that does not fill its last
tile is padded: that is by how much the state on a TPU is larger than its numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """One array of a shape; arrays that differ in their layout alone are equal.

    Attributes:
        dtype: as printed, such as `bf16`.
        dims: sizes.
        space: 0 is the device's large memory, 1 its fast memory beside the cores, 5 the host's.
        minor_to_major: its dims, the one that changes fastest first.
        tile: sizes that the fastest dims are padded to multiples of, slowest of them first.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0
    minor_to_major: tuple[int, ...] = field(default=(), compare=False)
    tile: tuple[int, ...] = field(default=(), compare=False)

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Logical bytes: no padding to tiles."""
        return math.ceil(self.size * _bits(self.dtype) / 8)

    @property
    def padded_bytes(self) -> int:
        """Bytes that it takes, padding to tiles included."""
        padded = [self.dims[dim] for dim in self.minor_to_major]  # fastest first
        padded += [1] * (len(self.tile) - len(padded))
        for place, size in enumerate(reversed(self.tile)):
            padded[place] = math.ceil(padded[place] / size) * size
        return math.ceil(math.prod(padded) * _bits(self.dtype) / 8)


def arrays(shape: str) -> list[Array]:
    """All arrays of a shape, those of tuples in order; what holds no numbers (`token[]`) has no bytes."""
    found = []
    for dtype, sizes, order, layout in _ARRAY.findall(shape):
        dims = tuple(int(d.lstrip("<=")) for d in sizes.split(",") if d)
        given = tuple(int(d) for d in order.split(",") if d)
        tile, space = _TILE.search(layout), _SPACE.search(layout)
        found.append(
            Array(
                dtype,
                dims,
                space=int(space[1]) if space else 0,
                minor_to_major=given or tuple(reversed(range(len(dims)))),
                tile=tuple(int(d) for d in tile[1].split(",")) if tile else (),
            )
        )
    return found


def entry_arguments(text: str) -> list[Array]:
    """The program's arguments, in their order. Raises ValueError where none are stated."""
    start = text.find("entry_computation_layout={(")
    end = text.find(")->", start)
    if start < 0 or end < 0:
        raise ValueError("no entry_computation_layout: not the text of a compiled program")
    return arrays(re.sub(r"/\*.*?\*/", "", text[start:end]))


def shape_bytes(shape: str) -> int:
    """Logical bytes of all arrays of a shape."""
    return sum(array.bytes for array in arrays(shape))


def memory_bytes(shape: str) -> int:
    """Logical bytes of those of a shape's arrays that lie in the device's large memory."""
    return sum(array.bytes for array in arrays(shape) if array.space == 0)


def _bits(dtype: str) -> int:
    """Bits of a number: what the name's first number says (`f8e4m3fn` has 8)."""
    if dtype == "pred":
        return 8
    match = re.match(r"(?:bf|f|s|u|c)(\d+)", dtype)
    return int(match.group(1)) if match else 0
