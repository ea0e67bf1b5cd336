"""Keys and values of what was read: a ring of places per row, written and attended over.

A row is one text. Its token at position `p` lies at place `p mod S`, so a local layer needs no more places
than its window and the tokens of one pass, and what a place holds follows from how far the row has been
read: nothing beside keys and values is stored.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.kernels.attention.reference import softmax_weights
from maxlm.parallel.axes import constrain, mesh_shards


class Cache(NamedTuple):
    """Keys and values of the layers of a stack."""

    key: jax.Array  # [L, B, K, S, C]
    value: jax.Array  # [L, B, K, S, V]


class Pass(NamedTuple):
    """Which tokens a pass reads, `[P, T]` of them, and into which rows of the caches."""

    rows: jax.Array  # [P] int32 rows of the caches; one that is none is not written
    starts: jax.Array  # [P] int32: tokens that the row holds before
    counts: jax.Array  # [P] int32: how many of the T tokens, its first ones, are text
    fresh: bool  # whether no row holds anything before: then tokens see only each other
    in_order: bool  # whether rows are 0 … B - 1, so that nothing need be gathered

    def positions(self, length: int) -> jax.Array:
        """Positions `[P, T]` in the row's text."""
        return self.starts[:, None] + jnp.arange(length, dtype=jnp.int32)

    def segment_ids(self, length: int) -> jax.Array:
        """`[P, T]` int32, 1 for text and 0 for padding."""
        return (jnp.arange(length) < self.counts[:, None]).astype(jnp.int32)


def ring_size(length: int, window: int | None, longest_pass: int) -> int:
    """Places of a layer's ring.

    Args:
        length: tokens that a row may come to hold.
        window: of a local layer.
        longest_pass: most tokens that are read at once after others: the first of them still sees its
            whole window when the last is written.
    """
    return length if window is None else min(length, window + longest_pass - 1)


def write(cache: Cache, layer: jax.Array, key: jax.Array, value: jax.Array, now: Pass) -> Cache:
    """The cache with keys `[P, T, K, C]` and values `[P, T, K, V]` of a pass in a layer of it."""
    size, index = cache.key.shape[3], jnp.arange(key.shape[1])
    counts = now.counts[:, None]
    kept = (index < counts) & (index >= counts - size)  # of more than the ring holds, the last
    place = jnp.where(kept, now.positions(key.shape[1]) % size, size)  # beyond the end: dropped
    where = (layer, now.rows[:, None], slice(None), place)

    def put(array: jax.Array, new: jax.Array) -> jax.Array:
        return array.at[where].set(new.astype(array.dtype), mode="drop")

    return Cache(put(cache.key, key), put(cache.value, value))


def attend_cached(
    query: jax.Array,
    cache: Cache,
    layer: jax.Array,
    now: Pass,
    *,
    window: int | None,
    logit_cap: float | None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attention of a pass over its rows, after its own tokens were written.

    As `reference_attention` defines it: causal, softmax in float32, with windows, soft-cap and sinks.

    Args:
        query: `[P, T, H, C]`.
        cache: with the pass's keys and values.
        layer: index of the layer in the cache's stack.
        now: the pass.
        window: how many keys a query sees, itself included; None: all before it.
        logit_cap: soft cap of the scores.
        sinks: `[H]` logits in the softmax's denominator; None: none.

    Returns:
        `[P, T, H, V]`, in the query's dtype.
    """
    batch, length, num_heads, width = query.shape
    num_kv_heads, size = cache.key.shape[2:4]
    key, value = (_rows_of(array, layer, now) for array in cache)  # [P, K, S, C]
    grouped = (query * width**-0.5).reshape(batch, length, num_kv_heads, -1, width)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("ptkgc,pksc->pkgts", grouped, key, preferred_element_type=wide)
    visible = _visible(now, length, size, window)  # [P, T, S]
    weights = softmax_weights(scores, visible, logit_cap=logit_cap, sinks=sinks).astype(value.dtype)
    out = jnp.einsum("pkgts,pksc->ptkgc", weights, value)
    return out.reshape(batch, length, num_heads, value.shape[-1]).astype(query.dtype)


def placed(caches: list[list[Cache]]) -> list[list[Cache]]:
    """Caches on the mesh that is set: rows over the data axes where they divide, heads over `tensor`."""

    def place(array: jax.Array) -> jax.Array:
        divides = array.shape[1] % mesh_shards("batch") == 0
        rows = "batch" if divides else "activation"
        return constrain(array, "activation", rows, "kv_heads", "activation", "head_dim")

    return jax.tree.map(place, caches)


def resized(caches: list[list[Cache]], empty: list[list[Cache]]) -> list[list[Cache]]:
    """Caches in larger ones, `empty`: rows and places keep their numbers.

    A ring that grows held everything from position 0, or it would have its full size already.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim)

    return placed(jax.tree.map(put, caches, empty))


def _rows_of(array: jax.Array, layer: jax.Array, now: Pass) -> jax.Array:
    stack = jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)
    return stack if now.in_order else jnp.take(stack, now.rows, axis=0, mode="clip")


def _visible(now: Pass, length: int, size: int, window: int | None) -> jax.Array:
    """Which places each query sees, bool `[P, T, S]`."""
    newest = (now.starts + now.counts - 1)[:, None]  # [P, 1]
    held = newest - (newest - jnp.arange(size)) % size  # [P, S]: position at each place
    asked = now.positions(length)[:, :, None]
    visible = (held[:, None, :] <= asked) & (held[:, None, :] >= 0)
    if window is not None:
        visible &= held[:, None, :] > asked - window
    return visible
