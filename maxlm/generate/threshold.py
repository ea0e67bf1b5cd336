"""The smallest value that a row keeps, found bit by bit instead of by sorting.

A float32 read as an unsigned integer, with the bits of negative ones turned over, has the same order. 32
comparisons of a whole row find the largest threshold that still keeps enough; a sort of 50,000 values takes
a CPU several times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def kth_largest(values: jax.Array, k: jax.Array) -> jax.Array:
    """Per row of `values [B, V]` float32 its `k [B]`-th largest, `[B, 1]`; of fewer, the smallest."""
    return _largest(values, lambda kept: jnp.sum(kept, -1) >= jnp.minimum(k, values.shape[-1]))


def smallest_of_mass(shares: jax.Array, mass: jax.Array) -> jax.Array:
    """Per row the smallest of the fewest largest shares that sum to `mass [B]`, `[B, 1]`.

    0 where all of them do not: rounded sums may stay below 1.
    """
    found = _largest(shares, lambda kept: jnp.sum(jnp.where(kept, shares, 0), -1) >= mass)
    return jnp.where(found > 0, found, 0)  # NaN, where no threshold was enough


def _largest(values: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest threshold `[B, 1]` of which `enough(values >= threshold)` `[B]` holds."""
    ordered = _to_ordered(values)

    def narrow(step: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(enough(ordered >= tried)[:, None], tried, found)

    first = jnp.zeros((values.shape[0], 1), jnp.uint32)
    return _from_ordered(jax.lax.fori_loop(0, 32, narrow, first))


_SIGN = np.uint32(1 << 31)


def _to_ordered(values: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _from_ordered(ordered: jax.Array) -> jax.Array:
    bits = jnp.where(ordered >= _SIGN, ordered ^ _SIGN, ~ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
