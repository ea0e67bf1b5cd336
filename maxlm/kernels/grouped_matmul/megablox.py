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
# Fewer columns would read rows, or matrices, more often than the matrix unit can use them.
LEAST_COLUMNS = 256
# Of the 16 MiB that a v5e gives a kernel: tiles of 12.8 by the count below compile, a forward one of 14.5 does not.
MEMORY = 12.8 * 2**20

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


def tiles_of(
    rows: int, depth: int, columns: int, itemsize: int, *, of_gradient: bool = False
) -> Tiles:
    """The tiles of a grouped matmul: the whole depth where that leaves enough columns, so that a matrix is read once.

    Args:
        rows: of all groups.
        depth: that is summed over; of the weights' gradient, its first dim.
        columns: of the result.
        itemsize: bytes of a number.
        of_gradient: whether the result is the weights' gradient, and rows are summed over.
    """
    high = min(ROWS, _up_to(rows, 128))
    enough = min(LEAST_COLUMNS, _up_to(-(-columns // 2), 128))
    for parts in range(1, depth + 1):
        deep = _up_to(-(-depth // parts), 128)
        # A chip with two TensorCores gives each of them half of the tiles of columns, so there are two, four, ….
        for count in range(2, columns + 3, 2):
            wide = _up_to(-(-columns // count), 128)
            tiles = (high, deep, wide)
            if wide < enough:
                break
            if wide <= COLUMNS and kernel_bytes(tiles, itemsize, of_gradient) <= MEMORY:
                return tiles
    raise AssertionError((rows, depth, columns, itemsize))  # a depth of 128 always fits


def kernel_bytes(tiles: Tiles, itemsize: int, of_gradient: bool) -> int:
    """Of the kernel's memory that tiles take: two buffers of each, and sums in float32.

    For the gradient both operands are masked, and the first transposed, in float32.
    """
    high, deep, wide = tiles
    buffers = 2 * itemsize
    if of_gradient:
        rows = high * deep * (buffers + 8) + high * wide * (buffers + 4)
        return rows + deep * wide * (buffers + 4)
    return high * deep * buffers + deep * wide * buffers + high * wide * (buffers + 4)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _multiply(x: jax.Array, weights: jax.Array, sizes: jax.Array, interpret: bool) -> jax.Array:
    _, depth, columns = weights.shape
    tiles = tiles_of(x.shape[0], depth, columns, x.dtype.itemsize)
    return ops.backend.gmm(x, weights, sizes, x.dtype, tiles, interpret=interpret)


def _forward(x: jax.Array, weights: jax.Array, sizes: jax.Array, interpret: bool) -> Any:
    return _multiply(x, weights, sizes, interpret), (x, weights, sizes)


def _backward(interpret: bool, residuals: Any, dy: jax.Array) -> Any:
    x, weights, sizes = residuals
    (rows, _), (groups, depth, columns) = x.shape, weights.shape
    tiles = tiles_of(rows, columns, depth, x.dtype.itemsize)
    dx = ops.backend.gmm(
        dy, weights, sizes, x.dtype, tiles, transpose_rhs=True, interpret=interpret
    )
    tiles = tiles_of(rows, depth, columns, x.dtype.itemsize, of_gradient=True)
    # The kernel takes the rows' dim last, and swaps it back.
    gradient = ops.backend.tgmm(
        x.swapaxes(0, 1), dy, sizes, x.dtype, tiles, None, groups, interpret=interpret
    )
    return dx, gradient, None


_multiply.defvjp(_forward, _backward)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
