"""Ulysses (arXiv:2309.14509): an all-to-all gives each device some heads of whole rows, and back.

Fewer key-value heads than devices are sent to every device that holds a query head of their group.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from maxlm.kernels.context.blocks import Features
from maxlm.kernels.context.whole_keys import attend_whole_keys
from maxlm.parallel.axes import LENGTH_AXES


def ulysses_attention(
    features: Features, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> jax.Array:
    """Causal attention; called inside `shard_map`, tokens in their order.

    Arguments and result as in `ring_attention`; K × G divides by the number of devices.
    """
    batch, length, num_kv_heads, groups, width = query.shape
    count = jax.lax.axis_size(LENGTH_AXES)
    # The fewest copies of each key-value head that give every device the same number of them.
    copies = count // math.gcd(count, num_kv_heads)

    def to_heads(x: jax.Array) -> jax.Array:  # [B, T, N, C] → [B, T × count, N / count, C]
        return jax.lax.all_to_all(x, LENGTH_AXES, split_axis=2, concat_axis=1, tiled=True)

    query = to_heads(query.reshape(batch, length, num_kv_heads * groups, width))
    key, value = (to_heads(jnp.repeat(x, copies, axis=2)) for x in (key, value))
    segments = jax.lax.all_gather(segments, LENGTH_AXES, axis=1, tiled=True)
    query = query.reshape(*query.shape[:2], key.shape[2], groups // copies, width)
    out = attend_whole_keys(features, query, key, value, segments, segments, 0)
    out = out.reshape(batch, length * count, -1, width)
    out = jax.lax.all_to_all(out, LENGTH_AXES, split_axis=1, concat_axis=2, tiled=True)
    return out.reshape(batch, length, num_kv_heads, groups, width)
