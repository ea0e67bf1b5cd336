"""Attention over gathered keys: every device brings all keys and values of its rows together.

The simple reference of the methods. Memory holds the keys and values of whole rows, the transfer is
not hidden, and under a causal mask the last device has most of the work.
"""

from __future__ import annotations

import jax

from maxlm.kernels.context.blocks import Features
from maxlm.kernels.context.whole_keys import attend_whole_keys
from maxlm.parallel.axes import LENGTH_AXES


def all_gather_attention(
    features: Features, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> jax.Array:
    """Causal attention; called inside `shard_map`, tokens in their order.

    Arguments and result as in `ring_attention`.
    """

    def gathered(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, LENGTH_AXES, axis=1, tiled=True)

    start = jax.lax.axis_index(LENGTH_AXES) * query.shape[1]
    return attend_whole_keys(
        features, query, gathered(key), gathered(value), segments, gathered(segments), start
    )
