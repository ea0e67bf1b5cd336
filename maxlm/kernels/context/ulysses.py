"""Ulysses (arXiv:2309.14509): an all-to-all gives each device some heads of whole rows, and back.

Fewer key-value heads than devices are sent to every device that holds a query head of their group.
What a device computes between is ordinary self-attention, by any of its implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from maxlm.config.schema import ModelConfig
from maxlm.kernels.row_major import row_major
from maxlm.parallel.axes import LENGTH_AXES, TABLE, shard_count


def ulysses_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    attend: Callable[..., jax.Array],
    names: tuple[str, ...] = (),
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
        names: which of `query`, `key` and `value` to name so for rematerialisation: as they were sent,
            so that the backward pass does not send them again, but keys and values that go to several
            devices as they come, which is less.

    Returns:
        `[B, T, H, V]`.
    """
    count = jax.lax.axis_size(LENGTH_AXES)
    copies = _copies(key.shape[2], count)

    def sent(x: jax.Array, name: str, copies: int = 1) -> jax.Array:
        """`[B, T, N, C]` → `[B, n × T, N × copies / n, C]`."""
        if name not in names:
            return _to_heads(jnp.repeat(x, copies, axis=2))
        if copies > 1:
            return _to_heads(jnp.repeat(checkpoint_name(x, name), copies, axis=2))
        # Named with heads before tokens, as kernels read them and `_to_heads` has them.
        return checkpoint_name(_to_heads(x).swapaxes(1, 2), name).swapaxes(1, 2)

    query = sent(query, "query")
    key, value = sent(key, "key", copies), sent(value, "value", copies)
    segment_ids = jax.lax.all_gather(segment_ids, LENGTH_AXES, axis=1, tiled=True)
    arrays = [query, key, value, segment_ids]
    if sinks is not None:
        own = query.shape[2]
        arrays.append(
            jax.lax.dynamic_slice_in_dim(sinks, jax.lax.axis_index(LENGTH_AXES) * own, own)
        )
    return _to_tokens(attend(*arrays))


# In both exchanges a device's blocks are the first dim, and heads come before tokens on either side: what
# lies between is copied once before and once after on a TPU, where XLA's own decomposition of an
# all-to-all of inner dims left more copies in the backward pass.
def _to_heads(x: jax.Array) -> jax.Array:
    """A device's tokens of all heads `[B, T, N, C]` → all tokens of its heads `[B, n × T, N / n, C]`."""
    count = jax.lax.axis_size(LENGTH_AXES)
    batch, length, heads, width = x.shape
    x = x.reshape(batch, length, count, heads // count, width).transpose(2, 0, 3, 1, 4)
    x = jax.lax.all_to_all(x, LENGTH_AXES, split_axis=0, concat_axis=0, tiled=True)
    x = x.transpose(1, 2, 0, 3, 4).reshape(batch, heads // count, count * length, width)
    return x.swapaxes(1, 2)


def _to_tokens(x: jax.Array) -> jax.Array:
    """All tokens of a device's heads `[B, n × T, N / n, C]` → its tokens of all heads `[B, T, N, C]`."""
    count = jax.lax.axis_size(LENGTH_AXES)
    batch, length, heads, width = x.shape
    x = x.reshape(batch, count, length // count, heads, width).transpose(1, 0, 3, 2, 4)
    x = jax.lax.all_to_all(x, LENGTH_AXES, split_axis=0, concat_axis=0, tiled=True)
    x = x.transpose(1, 0, 2, 3, 4).reshape(batch, count * heads, length // count, width)
    # Pinned, or the gradient of the output projection wants it with the tokens fastest: a dearer copy.
    return row_major(x).swapaxes(1, 2)


def heads_of_device(model: ModelConfig, mesh: Mesh) -> tuple[int, int]:
    """Query and key-value heads with which a device attends to whole rows, after `tensor`."""
    assert model.num_kv_heads
    tensor, count = (shard_count(mesh, axes) for axes in (TABLE["heads"], LENGTH_AXES))
    kv_heads = model.num_kv_heads // tensor
    return model.num_heads // tensor // count, kv_heads * _copies(kv_heads, count) // count


def _copies(num_kv_heads: int, count: int) -> int:
    """The fewest copies of each key-value head that give every device the same number of them."""
    return count // math.gcd(count, num_kv_heads)
