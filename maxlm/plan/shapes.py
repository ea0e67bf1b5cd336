"""Bytes of arrays by the shapes that a compiled program prints, such as `bf16[8,128]{1,0:T(8,128)S(1)}`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\](\{[^}]*\})?")
_BITS = {"pred": 8, "token": 0}


@dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
        dtype: as printed, such as `bf16`.
        dims: sizes.
        space: memory space; 0 is the device's large memory, others are on the chip or the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Logical bytes: no padding to tiles."""
        return math.ceil(self.size * _bits(self.dtype) / 8)


def arrays(shape: str) -> list[Array]:
    """All arrays of a shape, those of tuples in order."""
    return [
        Array(
            dtype,
            tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
            int(space.group(1)) if (space := re.search(r"S\((\d+)\)", layout)) else 0,
        )
        for dtype, dims, layout in _ARRAY.findall(shape)
        if _bits(dtype) or dtype == "token"
    ]


def shape_bytes(shape: str) -> int:
    """Logical bytes of all arrays of a shape."""
    return sum(array.bytes for array in arrays(shape))


def memory_bytes(shape: str) -> int:
    """Logical bytes of those of a shape's arrays that lie in the device's large memory."""
    return sum(array.bytes for array in arrays(shape) if array.space == 0)


def _bits(dtype: str) -> int:
    """Bits of a number: what the name's first number says (`f8e4m3fn` has 8)."""
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"(?:bf|f|s|u|c)(\d+)", dtype)
    return int(match.group(1)) if match else 0
