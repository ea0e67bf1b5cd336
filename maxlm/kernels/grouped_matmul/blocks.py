"""Grouped matmul as a loop over blocks of rows, each with its group's matrix: plain XLA.

What `ragged_dot` costs on a CPU grows with the number of groups; here a row is visited once, and a
group costs at most one block that is not full. The loop ends with the last block that has rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxlm.kernels.one_mapped import one_mapped

# Enough rows that reading a matrix anew for each block does not show.
LARGEST_BLOCK = 256
SMALLEST_BLOCK = 16


@jax.custom_vjp
def blocks(x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiply rows with their group's matrix, block by block.

    Args:
        x: `[M, K]`, rows sorted by group.
        weights: `[G, K, N]`, in `x`'s dtype or narrower: widened block by block.
        sizes: `[G]` int32, rows of each group.

    Returns:
        `[M, N]`; zeros past the last group's rows.
    """
    return one_mapped(_product)(x, weights, sizes)


def _forward(x: jax.Array, weights: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return blocks(x, weights, sizes), (x, weights, sizes)


def _backward(residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    return (*one_mapped(_gradients)(*residuals, dy), None)


blocks.defvjp(_forward, _backward)


def _product(x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    return _multiply(x, weights, _block_table(x.shape[0], sizes))


def _gradients(
    x: jax.Array, weights: jax.Array, sizes: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    table = _block_table(x.shape[0], sizes)
    dx = _multiply(dy, weights.swapaxes(1, 2), table)
    return dx, _weight_gradient(x, dy, weights, table)


class _Table(NamedTuple):
    """Where each block lies; blocks past `used` have no rows."""

    group: jax.Array  # [blocks]
    start: jax.Array  # [blocks], its first row
    end: jax.Array  # [blocks], of its group
    used: jax.Array
    size: int


def _block_table(rows: int, sizes: jax.Array) -> _Table:
    groups = sizes.shape[0]
    even = max(SMALLEST_BLOCK, -(-rows // groups))
    size = min(LARGEST_BLOCK, 1 << (even - 1).bit_length())
    most = rows // size + groups
    ends = jnp.cumsum(sizes)
    per_group = -(-sizes // size)
    last_block = jnp.cumsum(per_group)
    index = jnp.arange(most)
    group = jnp.minimum(jnp.searchsorted(last_block, index, side="right"), groups - 1)
    first_block = last_block[group] - per_group[group]
    start = ends[group] - sizes[group] + (index - first_block) * size
    return _Table(group, start, ends[group], last_block[-1], size)


def _multiply(x: jax.Array, weights: jax.Array, table: _Table) -> jax.Array:
    rows, columns = x.shape[0], weights.shape[2]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.pad(x, ((0, table.size), (0, 0)))  # a slice that reaches past the end would be moved

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        block = _rows_of(x, table, index)
        matrix = weights[table.group[index]].astype(block.dtype)
        product = jnp.dot(block, matrix, preferred_element_type=wide)
        # Rows of the next group are written as zeros, and then by that group's own first block.
        start = (table.start[index], 0)
        return jax.lax.dynamic_update_slice(out, product.astype(out.dtype), start)

    out = jnp.zeros((rows + table.size, columns), x.dtype)
    return jax.lax.fori_loop(0, table.used, one, out)[:rows]


def _weight_gradient(x: jax.Array, dy: jax.Array, weights: jax.Array, table: _Table) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, dy = (jnp.pad(a, ((0, table.size), (0, 0))) for a in (x, dy))

    def one(index: jax.Array, total: jax.Array) -> jax.Array:
        block, grad = _rows_of(x, table, index), _rows_of(dy, table, index)
        product = jnp.dot(block.T, grad, preferred_element_type=wide)
        return total.at[table.group[index]].add(product)

    total = jnp.zeros(weights.shape, wide)
    return jax.lax.fori_loop(0, table.used, one, total).astype(weights.dtype)


def _rows_of(x: jax.Array, table: _Table, index: jax.Array) -> jax.Array:
    """Rows of a block, zeros where they are of the next group."""
    start = table.start[index]
    rows = jax.lax.dynamic_slice_in_dim(x, start, table.size)
    mine = start + jnp.arange(table.size) < table.end[index]
    return jnp.where(mine[:, None], rows, 0)
