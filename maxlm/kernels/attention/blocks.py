"""Queries and keys in blocks, and which blocks meet.

In: arrays of tokens `[B, T, …]` and which tokens of the sequence they are; out: the same in blocks of
equal size, heads of a group side by side, and the range of keys that a block of queries may see.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_NOWHERE = jnp.iinfo(jnp.int32).max  # the index of a key that fills up a block: after every query


class Queries(NamedTuple):
    """Queries of a device in n blocks of q.

    The G query heads of a key-value head are rows of one matmul, so keys are never repeated.
    """

    query: jax.Array  # [n, B, K, G·q, C], scaled
    token_index: jax.Array  # [n, q]
    segments: jax.Array  # [n, B, q]


class Keys(NamedTuple):
    """Keys and values in m blocks of s."""

    key: jax.Array  # [m, B, K, s, C]
    value: jax.Array  # [m, B, K, s, V]
    token_index: jax.Array  # [m, s]
    segments: jax.Array  # [m, B, s]


def even_block(length: int, runs: int = 1) -> int:
    """Tokens in each of the blocks of a row, of equal size, so that little is filled up.

    Args:
        length: tokens in the row.
        runs: of how many equally long runs of adjacent tokens it consists; no block lies in two of
            them where a run divides into blocks. Blocks are skipped by the range of their indices.
    """
    blocks = runs * -(-length // (runs * _block_size(length)))
    return -(-length // blocks)


def cut_queries(
    query: jax.Array, kv_heads: int, index: jax.Array, segments: jax.Array, size: int
) -> Queries:
    """Queries in blocks.

    Args:
        query: `[B, T, H, C]`, not scaled.
        kv_heads: K.
        index: `[T]`, as in `parts.Places`.
        segments: `[B, T]`.
        size: q, as from `even_block`.
    """
    query = cut_heads(query * query.shape[-1] ** -0.5, kv_heads, size)
    return Queries(query, _cut_last(index, size, -1), _cut_last(segments, size, -1))


def cut_keys(
    key: jax.Array, value: jax.Array, index: jax.Array, segments: jax.Array, size: int
) -> Keys:
    """Keys `[B, S, K, C]` and values `[B, S, K, V]` in blocks; the other arguments as in `cut_queries`."""

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], -1, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)

    return Keys(
        cut(key), cut(value), _cut_last(index, size, _NOWHERE), _cut_last(segments, size, -1)
    )


def visible(queries: Queries, keys: Keys, window: int | None) -> tuple[jax.Array, jax.Array]:
    """The first and one after the last block of keys of which a block of queries may see a key.

    By the smallest and largest index and segment of each block: `[n]` each, equal where there is none.
    """
    query_index, key_index = queries.token_index, keys.token_index

    def bounds(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x.min(-1), x.max(-1)

    # Padding (segment 0) comes after the last document and would else belong to its block's range.
    query_low, query_high = bounds(_or_nowhere(queries.segments))
    key_low, key_high = bounds(_or_nowhere(keys.segments))  # [m, B]
    meet = (query_low[:, None] <= key_high) & (key_low <= query_high[:, None])  # [n, m, B]
    seen = meet.any(-1) & (key_index.min(-1) <= query_index.max(-1)[:, None])  # [n, m]
    if window is not None:
        last_key = jnp.where(key_index == _NOWHERE, -1, key_index).max(-1)
        # A query that fills up a block has index -1.
        first_query = jnp.where(query_index < 0, _NOWHERE, query_index).min(-1)
        seen &= last_key > first_query[:, None] - window
    count = seen.shape[1]
    last = jnp.where(seen, jnp.arange(1, count + 1), 0).max(-1)
    return jnp.where(seen, jnp.arange(count), count).min(-1).clip(max=last), last


def cut_heads(x: jax.Array, kv_heads: int, size: int) -> jax.Array:
    """`[B, T, H, C]` → `[n, B, K, G·q, C]`."""
    batch, length, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    x = x.reshape(batch, -1, size, kv_heads, heads // kv_heads, width)
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(*x.shape[:3], -1, width)


def join_heads(x: jax.Array, length: int, heads: int) -> jax.Array:
    """`[n, B, K, G·q, C]` → `[B, T, H, C]`."""
    n, batch, kv_heads, _, width = x.shape
    x = x.reshape(n, batch, kv_heads, heads // kv_heads, -1, width).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, -1, heads, width)[:, :length]


def _cut_last(x: jax.Array, size: int, fill: int) -> jax.Array:
    """`[..., T]` → `[n, ..., size]`."""
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)]
    x = jnp.pad(x, pad, constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)


def _or_nowhere(segments: jax.Array) -> jax.Array:
    return jnp.where(segments == 0, _NOWHERE, segments)


def _block_size(length: int) -> int:
    """Tokens in a block, by measurement on a CPU: 256 took 15% more time than 128 at length 512,
    as much at 1024, and less at 2048 and 4096.
    """
    return 128 if length <= 512 else 256
