"""XLA's own grouped matmul, `jax.lax.ragged_dot`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ragged_dot(x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiply rows with their group's matrix by one XLA operation.

    A CPU expands it to every row with every matrix, as the reference does.

    Args:
        x: `[M, K]`, rows sorted by group.
        weights: `[G, K, N]`, in `x`'s dtype or narrower.
        sizes: `[G]` int32, rows of each group.

    Returns:
        `[M, N]`; zeros past the last group's rows.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # What lies past the groups is not promised by every backend: cut off, forward and backward.
    covered = (jnp.arange(x.shape[0]) < sizes.sum())[:, None]
    x = jnp.where(covered, x, 0)
    out = jax.lax.ragged_dot(x, weights.astype(x.dtype), sizes, preferred_element_type=wide)
    return jnp.where(covered, out, 0).astype(x.dtype)
