"""Attention over gathered keys: every device brings all keys and values of its rows together.

The simple reference of the methods. Memory holds the keys and values of whole rows, the transfer is
not hidden, and under a causal mask the last device has most of the work.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maxlm.kernels.attention.chunked import attend_places
from maxlm.kernels.attention.parts import Places
from maxlm.parallel.axes import LENGTH_AXES


def all_gather_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Causal attention; called inside `shard_map`, tokens in their order.

    Arguments and result as in `ring_attention`.
    """

    def gathered(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, LENGTH_AXES, axis=1, tiled=True)

    index = jnp.arange(query.shape[1], dtype=jnp.int32)
    index += jax.lax.axis_index(LENGTH_AXES) * query.shape[1]
    key, value, key_segments = gathered(key), gathered(value), gathered(segment_ids)
    key_index = jnp.arange(key.shape[1], dtype=jnp.int32)
    places = Places(index, key_index, segment_ids, key_segments)
    return attend_places(window, logit_cap, query, key, value, places, sinks)
