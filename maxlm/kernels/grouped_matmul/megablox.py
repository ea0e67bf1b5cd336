"""Grouped matmul on a TPU by Pallas: JAX's megablox (Gale et al., arXiv:2211.15841)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops

# Rows, depth and columns of a tile by bytes of a number. Two buffers of each operand and result, and
# the sums in float32, fit into the 16 MiB that a v5e gives a kernel; in the weights' gradient, where
# depth × columns is the result, too.
TILES = {2: (512, 1024, 1024), 4: (512, 512, 1024)}


def megablox(
    x: jax.Array, weights: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Multiply rows with their group's matrix, tile by tile; each row is visited once.

    Args:
        x: `[M, K]`, rows sorted by group; bfloat16 or float32.
        weights: `[G, K, N]`, in `x`'s dtype or narrower.
        sizes: `[G]` int32, rows of each group.
        interpret: run in Pallas's interpreter, for tests on a CPU.

    Returns:
        `[M, N]`; zeros past the last group's rows.
    """
    rows, depth = x.shape
    tile = tuple(
        min(largest, _up_to(size, 128))
        for largest, size in zip(
            TILES[x.dtype.itemsize], (rows, depth, weights.shape[2]), strict=True
        )
    )
    padded = _up_to(rows, tile[0])
    # The kernel leaves rows past the groups as they were in memory: cut off, forward and backward.
    covered = (jnp.arange(padded) < sizes.sum())[:, None]
    x = jnp.where(covered, jnp.pad(x, ((0, padded - rows), (0, 0))), 0)
    out = ops.gmm(x, weights.astype(x.dtype), sizes, x.dtype, tile, None, None, False, interpret)
    return jnp.where(covered, out, 0)[:rows]


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
