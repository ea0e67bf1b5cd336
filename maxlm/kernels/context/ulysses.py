"""Ulysses (arXiv:2309.14509): an all-to-all gives each device some heads of whole rows, and back.

Fewer key-value heads than devices are sent to every device that holds a query head of their group.
What a device computes between is ordinary self-attention, by any of its implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maxlm.config.schema import ModelConfig
from maxlm.parallel.axes import LENGTH_AXES, TABLE, shard_count


def ulysses_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    attend: Callable[..., jax.Array],
) -> jax.Array:
    """Causal attention; called inside `shard_map`, tokens in their order.

    Args:
        query: this device's, `[B, T, H, C]`; H divides by the number n of devices.
        key: this device's, `[B, T, K, C]`.
        value: `[B, T, K, V]`.
        segment_ids: `[B, T]` int32.
        sinks: `[H]`, equal on all devices, or None.
        attend: self-attention of whole rows, `(query [B, n × T, H / n, C], key, value, segment_ids)`
            and, where there are some, the sinks of these heads.

    Returns:
        `[B, T, H, V]`.
    """
    count = jax.lax.axis_size(LENGTH_AXES)
    copies = _copies(key.shape[2], count)

    def to_heads(x: jax.Array) -> jax.Array:  # [B, T, N, C] → [B, T × n, N / n, C]
        return jax.lax.all_to_all(x, LENGTH_AXES, split_axis=2, concat_axis=1, tiled=True)

    key, value = (to_heads(jnp.repeat(x, copies, axis=2)) for x in (key, value))
    segment_ids = jax.lax.all_gather(segment_ids, LENGTH_AXES, axis=1, tiled=True)
    arrays = [to_heads(query), key, value, segment_ids]
    if sinks is not None:
        own = query.shape[2] // count
        arrays.append(
            jax.lax.dynamic_slice_in_dim(sinks, jax.lax.axis_index(LENGTH_AXES) * own, own)
        )
    out = attend(*arrays)
    return jax.lax.all_to_all(out, LENGTH_AXES, split_axis=1, concat_axis=2, tiled=True)


def heads_of_device(model: ModelConfig, mesh: Mesh) -> tuple[int, int]:
    """Query and key-value heads with which a device attends to whole rows, after `tensor`."""
    assert model.num_kv_heads
    tensor, count = (shard_count(mesh, axes) for axes in (TABLE["heads"], LENGTH_AXES))
    kv_heads = model.num_kv_heads // tensor
    return model.num_heads // tensor // count, kv_heads * _copies(kv_heads, count) // count


def _copies(num_kv_heads: int, count: int) -> int:
    """The fewest copies of each key-value head that give every device the same number of them."""
    return count // math.gcd(count, num_kv_heads)
