"""How an array of theirs becomes arrays of ours, declared once for both directions.

In: one tensor of a Hugging Face file, or one or several of our parameters, of one layer (and one
expert); out: the other side. A transform moves values and never mixes them, so the way there and
back is bitwise; the one exception is `Vector.offset`, see there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """The shape of one of our parameters in one layer.

    Attributes:
        shape: its dims, without those of layers and, where theirs has a tensor each, experts.
        inputs: how many of them, from the first on, a matrix contracts; 0 for what is no matrix.
    """

    shape: Shape
    inputs: int

    @property
    def in_size(self) -> int:
        """Elements of the contracted dims."""
        return math.prod(self.shape[: self.inputs])

    @property
    def out_size(self) -> int:
        """Elements of the dims that are made."""
        return math.prod(self.shape[self.inputs :])


class Transform(Protocol):
    """Between one tensor of theirs and one or several of ours, in their order."""

    def shape(self, ours: Sequence[Piece]) -> Shape:
        """The shape that theirs must have."""
        ...

    def to_ours(self, theirs: np.ndarray, ours: Sequence[Piece]) -> list[np.ndarray]:
        """Our arrays, in their shapes."""
        ...

    def to_theirs(self, arrays: Sequence[np.ndarray], ours: Sequence[Piece]) -> np.ndarray:
        """Their array."""
        ...


@dataclass(frozen=True)
class Table:
    """The same on both sides: embeddings, learned positions."""

    def shape(self, ours: Sequence[Piece]) -> Shape:
        """Ours."""
        return ours[0].shape

    def to_ours(self, theirs: np.ndarray, ours: Sequence[Piece]) -> list[np.ndarray]:
        """As it is."""
        return [theirs]

    def to_theirs(self, arrays: Sequence[np.ndarray], ours: Sequence[Piece]) -> np.ndarray:
        """As it is."""
        return arrays[0]


@dataclass(frozen=True)
class Alternating:
    """Several of ours in turns along the last dim of theirs: the first element of each, the second …"""

    def shape(self, ours: Sequence[Piece]) -> Shape:
        """Ours, the last dim so many times as long."""
        *outer, last = ours[0].shape
        return (*outer, last * len(ours))

    def to_ours(self, theirs: np.ndarray, ours: Sequence[Piece]) -> list[np.ndarray]:
        """Every so many-th."""
        return [theirs[..., i :: len(ours)] for i in range(len(ours))]

    def to_theirs(self, arrays: Sequence[np.ndarray], ours: Sequence[Piece]) -> np.ndarray:
        """In turns."""
        return np.stack(arrays, axis=-1).reshape(self.shape(ours))


@dataclass(frozen=True)
class Vector:
    """Norm scales and biases: heads are flat in theirs; several of ours lie one after the other.

    Attributes:
        offset: ours is theirs plus this (Gemma's norms scale by 1 + w). What was imported comes back
            bitwise: in float32, w + 1 - 1 + 1 is w + 1.
    """

    offset: float = 0.0

    def shape(self, ours: Sequence[Piece]) -> Shape:
        """Flat."""
        return (sum(math.prod(piece.shape) for piece in ours),)

    def to_ours(self, theirs: np.ndarray, ours: Sequence[Piece]) -> list[np.ndarray]:
        """Cut, shaped and shifted."""
        ends = np.cumsum([math.prod(piece.shape) for piece in ours])[:-1]
        parts = np.split(theirs, ends)
        shaped = [part.reshape(p.shape) for part, p in zip(parts, ours, strict=True)]
        return [part + part.dtype.type(self.offset) for part in shaped] if self.offset else shaped

    def to_theirs(self, arrays: Sequence[np.ndarray], ours: Sequence[Piece]) -> np.ndarray:
        """Shifted back, flat and joined."""
        flat = np.concatenate([np.asarray(array).reshape(-1) for array in arrays])
        return flat - flat.dtype.type(self.offset) if self.offset else flat


@dataclass(frozen=True)
class Matrix:
    """A linear map: heads are flat in theirs; several of ours lie side by side along the outputs.

    Attributes:
        out_first: theirs is `[out, in]`, as PyTorch's Linear; else `[in, out]` (GPT-2's Conv1D).
        rope_pairs: theirs has the two dims that RoPE turns side by side (2i, 2i + 1), as Meta's Llama;
            ours has them half a head apart.
    """

    out_first: bool = True
    rope_pairs: bool = False

    def shape(self, ours: Sequence[Piece]) -> Shape:
        """`[out, in]` or `[in, out]`."""
        out, inputs = sum(piece.out_size for piece in ours), ours[0].in_size
        return (out, inputs) if self.out_first else (inputs, out)

    def to_ours(self, theirs: np.ndarray, ours: Sequence[Piece]) -> list[np.ndarray]:
        """Transposed, cut along the outputs, shaped."""
        matrix = theirs.T if self.out_first else theirs  # [in, out]
        ends = np.cumsum([piece.out_size for piece in ours])[:-1]
        parts = np.split(matrix, ends, axis=1)
        shaped = [part.reshape(p.shape) for part, p in zip(parts, ours, strict=True)]
        return [_halves(part) for part in shaped] if self.rope_pairs else shaped

    def to_theirs(self, arrays: Sequence[np.ndarray], ours: Sequence[Piece]) -> np.ndarray:
        """Flat, joined along the outputs, transposed."""
        arrays = [_pairs(np.asarray(a)) for a in arrays] if self.rope_pairs else arrays
        flat = [
            np.asarray(a).reshape(p.in_size, p.out_size) for a, p in zip(arrays, ours, strict=True)
        ]
        matrix = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        return np.ascontiguousarray(matrix.T if self.out_first else matrix)


@dataclass(frozen=True)
class HeadParts:
    """A linear map, or its bias, whose every head in theirs has its part of each of ours in turn.

    Ours without heads are parts of one.

    Attributes:
        rope_pairs: RoPE turns the last of ours, and theirs has its pairs of dims side by side.
    """

    rope_pairs: bool = False

    def shape(self, ours: Sequence[Piece]) -> Shape:
        """`[out, in]`, or of a bias `[out]`."""
        out = sum(piece.out_size for piece in ours)
        return (out, ours[0].in_size) if ours[0].inputs else (out,)

    def to_ours(self, theirs: np.ndarray, ours: Sequence[Piece]) -> list[np.ndarray]:
        """Transposed, cut within the heads, shaped."""
        widths = [piece.shape[-1] for piece in ours]
        heads = theirs.T.reshape(ours[0].in_size, -1, sum(widths))  # [in, H, parts of a head]
        parts = np.split(heads, np.cumsum(widths)[:-1], axis=-1)
        if self.rope_pairs:
            parts[-1] = _halves(parts[-1])
        return [part.reshape(p.shape) for part, p in zip(parts, ours, strict=True)]

    def to_theirs(self, arrays: Sequence[np.ndarray], ours: Sequence[Piece]) -> np.ndarray:
        """Joined within the heads, flat, transposed."""
        parts = [
            np.asarray(a).reshape(p.in_size, -1, p.shape[-1])
            for a, p in zip(arrays, ours, strict=True)
        ]
        if self.rope_pairs:
            parts[-1] = _pairs(parts[-1])
        flat = np.concatenate(parts, axis=-1).reshape(ours[0].in_size, -1)
        return np.ascontiguousarray(flat.T).reshape(self.shape(ours))


def _halves(heads: np.ndarray) -> np.ndarray:
    """`[..., C]` of pairs (a0 b0 a1 b1 …) to halves (a0 a1 … b0 b1 …)."""
    pairs = heads.reshape(*heads.shape[:-1], -1, 2)
    return np.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1)


def _pairs(heads: np.ndarray) -> np.ndarray:
    """The way back of `_halves`."""
    first, second = np.split(heads, 2, axis=-1)
    return np.stack([first, second], axis=-1).reshape(heads.shape)
