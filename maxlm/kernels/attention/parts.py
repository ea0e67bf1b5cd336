"""Attention of some queries over some of their keys, all of them there, in plain XLA.

In: queries, keys, values and which tokens of the sequence each is; out: the output over these keys
and the log-sum-exp of the scores (`forward_part`), or the gradients (`backward_part`). Queries are
taken a block at a time from where they lie and results written to where they belong, so that there is
never a second copy of them in blocks. `online_softmax` does the work of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxlm.kernels.attention.blocks import Keys, Queries, cut_keys, cut_queries, even_block
from maxlm.kernels.attention.online_softmax import (
    add_gradients,
    add_keys,
    cut_rows,
    finish,
    finish_keys,
    finish_queries,
    no_gradients,
    no_key_gradients,
    no_keys,
)
from maxlm.kernels.attention.turns import expected_turns

_Number = jax.Array | int


class Places(NamedTuple):
    """Which tokens of the sequence the queries and keys of a call are.

    A query sees a key of the same segment whose index is not larger than its own and, with a window,
    larger than its own minus the window. Indices need not be in order or adjacent.
    """

    query_index: jax.Array  # [T] int32
    key_index: jax.Array  # [S] int32
    query_segments: jax.Array  # [B, T] int32
    key_segments: jax.Array  # [B, S] int32


def whole_rows(segment_ids: jax.Array) -> Places:
    """All tokens of rows of `segment_ids [B, T]`, as queries and as keys."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    return Places(index, index, segment_ids, segment_ids)


def forward_part(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of some queries over some of their keys.

    Parts over disjoint keys add up to the whole: with `lse = logaddexp(lse1, lse2)` it is
    `out1 × exp(lse1 - lse) + out2 × exp(lse2 - lse)`.

    Args:
        query: `[B, T, H, C]`, not scaled.
        key: `[B, S, K, C]`, where H is a multiple of K.
        value: `[B, S, K, V]`.
        places: which tokens these are.
        window: how many keys a query sees, itself included; None: all before it.
        logit_cap: soft cap of the scores.

    Returns:
        The output `[B, T, H, V]`, normalised over these keys, and the log-sum-exp of the scores
        `[B, H, T]`, both in float32 (float64 for float64). A query that sees none of the keys has
        output 0 and log-sum-exp -inf.
    """
    batch, length, heads, _ = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    keys = _all_keys(key, value, places)
    blocks = _Blocks(query, places, key.shape[2])
    turns = blocks.turns(keys, window)
    features: Any = {"window": window, "logit_cap": logit_cap, "turns": turns}

    def block(start: _Number, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        queries = blocks.queries(start)
        nothing = no_keys(queries, value.shape[-1])
        softmax = add_keys(nothing, queries, keys, **features)
        out, lse = finish(softmax, blocks.size, heads, wide)
        return _write(done[0], out, start, 1), _write(done[1], lse, start, 2)

    padded = blocks.count * blocks.size
    out = jnp.zeros((batch, padded, heads, value.shape[-1]), wide)
    out, lse = blocks.each(block, (out, jnp.zeros((batch, heads, padded), wide)))
    return out[:, :length], lse[..., :length]


def backward_part(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    places: Places,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients that some keys contribute to their queries and receive from them.

    Args:
        query: as in `forward_part`.
        key: as in `forward_part`.
        value: as in `forward_part`.
        out: `[B, T, H, V]`, the output over all keys, not only these.
        lse: `[B, H, T]`, the log-sum-exp over all keys.
        d_out: `[B, T, H, V]`, gradient of that output.
        places: as in `forward_part`.
        window: as in `forward_part`.
        logit_cap: as in `forward_part`.

    Returns:
        Gradients of query, key and value in float32 (float64 for float64), to be added over parts.
    """
    length, heads = query.shape[1:3]
    keys = _all_keys(key, value, places)
    blocks = _Blocks(query, places, key.shape[2])
    out, lse, d_out = blocks.fill(out, 1), blocks.fill(lse, 2), blocks.fill(d_out, 1)
    turns = blocks.turns(keys, window)
    features: Any = {"window": window, "logit_cap": logit_cap, "turns": turns}

    def block(start: _Number, done: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        queries = blocks.queries(start)
        rows = cut_rows(
            queries,
            blocks.read(out, start, 1),
            blocks.read(lse, start, 2),
            blocks.read(d_out, start, 1),
        )
        before = no_gradients(queries, *done[1:])
        after = add_gradients(before, queries, keys, rows, **features)
        d_query = finish_queries(after.query, blocks.size, heads)
        return _write(done[0], d_query, start, 1), after.key, after.value

    d_query = jnp.zeros((*out.shape[:3], query.shape[-1]), lse.dtype)
    d_query, d_key, d_value = blocks.each(block, (d_query, *no_key_gradients(keys)))
    return d_query[:, :length], *finish_keys(d_key, d_value, key.shape[1])


class _Blocks:
    """The queries of a call in blocks of equal size, each read when its turn comes."""

    def __init__(self, query: jax.Array, places: Places, kv_heads: int):
        length = query.shape[1]
        self.size = even_block(length)
        self.count = -(-length // self.size)
        self._filled = self.count * self.size - length
        self._kv_heads = kv_heads
        self._query = self.fill(query, 1)
        self._index = self.fill(places.query_index, 0, -1)
        self._segments = self.fill(places.query_segments, 1, -1)

    def fill(self, x: jax.Array, dim: int, value: int = 0) -> jax.Array:
        """Fill up the last block of an array whose `dim` is the queries."""
        pad = [(0, self._filled if i == dim else 0) for i in range(x.ndim)]
        return jnp.pad(x, pad, constant_values=value) if self._filled else x

    def read(self, x: jax.Array, start: _Number, dim: int) -> jax.Array:
        """The block of an array that starts at a query."""
        return jax.lax.dynamic_slice_in_dim(x, start, self.size, dim)

    def queries(self, start: _Number) -> Queries:
        """The one block that starts at a query."""
        query = self.read(self._query, start, 1)
        index, segments = self.read(self._index, start, 0), self.read(self._segments, start, 1)
        return cut_queries(query, self._kv_heads, index, segments, self.size)

    def turns(self, keys: Keys, window: int | None) -> float:
        """Blocks of keys that each meets on average."""
        count, size = keys.token_index.shape
        return expected_turns(count, size, window, queries=self.count)

    def each(self, block: Callable[[_Number, Any], Any], carry: Any) -> Any:
        """`block(start, carry)` for each; a loop of one turn is none."""
        if self.count == 1:
            return block(0, carry)
        return jax.lax.fori_loop(0, self.count, lambda i, carry: block(i * self.size, carry), carry)


def _all_keys(key: jax.Array, value: jax.Array, places: Places) -> Keys:
    size = even_block(key.shape[1])
    return cut_keys(key, value, places.key_index, places.key_segments, size)


def _write(x: jax.Array, block: jax.Array, start: _Number, dim: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, block, start, dim)
