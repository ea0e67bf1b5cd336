"""Grouped matmul on a TPU by Pallas: JAX's megablox (Gale et al., arXiv:2211.15841), with tiles of our own."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops

# A tile of rows in which a group ends is multiplied once for each group in it, whole: the fewer rows a tile
# has, the less of that. Below 256 loading a matrix into the matrix unit takes longer than it saves
# (docs/experts.md has the schedules).
ROWS = 256
COLUMNS = 1024
# Depth × columns, bytes: of a group's matrix, of which two buffers lie in the kernel's memory, and of its
# gradient, which besides is summed in float32. All of a tile fits into the 16 MiB of a v5e.
MATRIX_BYTES = 4 << 20
GRADIENT_BYTES = 2 << 20

Tiles = tuple[int, int, int]  # rows, depth, columns


def megablox(
    x: jax.Array, weights: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Multiply rows with their group's matrix, tile by tile.

    Args:
        x: `[M, K]`, rows sorted by group; bfloat16 or float32.
        weights: `[G, K, N]`, in `x`'s dtype or narrower.
        sizes: `[G]` int32, rows of each group.
        interpret: run in Pallas's interpreter, for tests on a CPU.

    Returns:
        `[M, N]`; past the last group's rows what was in memory before.
    """
    rows = x.shape[0]
    missing = -rows % min(ROWS, _up_to(rows, 128))
    x = jnp.pad(x, ((0, missing), (0, 0)))
    return _multiply(x, weights.astype(x.dtype), sizes, interpret)[:rows]


def tiles_of(rows: int, depth: int, columns: int, itemsize: int, matrix_bytes: int) -> Tiles:
    """The tiles of a grouped matmul.

    Args:
        rows: of all groups.
        depth: that is summed over; of the weights' gradient, its first dim.
        columns: of the result.
        itemsize: bytes of a number.
        matrix_bytes: `MATRIX_BYTES` or `GRADIENT_BYTES`.
    """
    # A chip with two TensorCores gives each of them half of the tiles of columns.
    wide = _even_part(columns, COLUMNS, parts=2)
    deep = _even_part(depth, matrix_bytes // (itemsize * wide))
    return min(ROWS, _up_to(rows, 128)), deep, wide


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _multiply(x: jax.Array, weights: jax.Array, sizes: jax.Array, interpret: bool) -> jax.Array:
    _, depth, columns = weights.shape
    tiles = tiles_of(x.shape[0], depth, columns, x.dtype.itemsize, MATRIX_BYTES)
    return ops.backend.gmm(x, weights, sizes, x.dtype, tiles, interpret=interpret)


def _forward(x: jax.Array, weights: jax.Array, sizes: jax.Array, interpret: bool) -> Any:
    return _multiply(x, weights, sizes, interpret), (x, weights, sizes)


def _backward(interpret: bool, residuals: Any, dy: jax.Array) -> Any:
    x, weights, sizes = residuals
    (rows, _), (groups, depth, columns) = x.shape, weights.shape
    tiles = tiles_of(rows, columns, depth, x.dtype.itemsize, MATRIX_BYTES)
    dx = ops.backend.gmm(
        dy, weights, sizes, x.dtype, tiles, transpose_rhs=True, interpret=interpret
    )
    tiles = tiles_of(rows, depth, columns, x.dtype.itemsize, GRADIENT_BYTES)
    # The kernel takes the rows' dim last, and swaps it back.
    gradient = ops.backend.tgmm(
        x.swapaxes(0, 1), dy, sizes, x.dtype, tiles, None, groups, interpret=interpret
    )
    return dx, gradient, None


_multiply.defvjp(_forward, _backward)


def _even_part(size: int, most: int, parts: int = 1) -> int:
    """The size in equal parts, a multiple of `parts` of them, each a multiple of 128 and at most `most`."""
    number = -(-size // max(most, 128))
    return _up_to(-(-size // _up_to(number, parts)), 128)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
