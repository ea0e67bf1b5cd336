"""The plain grouped matmul: every row with every group's matrix, of which one counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def reference(x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiply rows with their group's matrix; the cost is that of all groups for every row.

    Args:
        x: `[M, K]`, rows sorted by group.
        weights: `[G, K, N]`, in `x`'s dtype or narrower.
        sizes: `[G]` int32, rows of each group.

    Returns:
        `[M, N]`; zeros past the last group's rows.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    ends = jnp.cumsum(sizes)
    rows = jnp.arange(x.shape[0])
    x = jnp.where((rows < ends[-1])[:, None], x, 0)

    def add(out: jax.Array, group: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        matrix, start, end = group
        mine = (rows >= start) & (rows < end)
        product = jnp.einsum("mk,kn->mn", x, matrix.astype(x.dtype), preferred_element_type=wide)
        return out + jnp.where(mine[:, None], product, 0), None

    out = jnp.zeros((x.shape[0], weights.shape[2]), wide)
    out, _ = jax.lax.scan(add, out, (weights, ends - sizes, ends))
    return out.astype(x.dtype)
