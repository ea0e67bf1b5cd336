"""Attention of some queries over some of their keys, block by block, in plain XLA.

In: queries, keys, values and which tokens of the sequence each is; out: the output over these keys
and the log-sum-exp of the scores, with which parts over other keys are added, or the gradients. It
is what `chunked` is made of, and what attention over a sequence on several devices can be made of.

Forward and backward follow FlashAttention-2 (arXiv:2307.08691): blocks of queries go over blocks of
keys with an online softmax, and the backward pass computes the scores again, so that memory is linear
in length. Blocks in which nothing can be seen are not computed: those that causality or a window
masks, and those at either end whose segments do not occur among the queries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_NOWHERE = jnp.iinfo(jnp.int32).max  # the index of a key that fills up a block: after every query


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


def block_size(length: int) -> int:
    """Tokens in a block, by measurement on a CPU: 256 took 15% more time than 128 at length 512,
    as much at 1024, and less at 2048 and 4096.
    """
    return 128 if length <= 512 else 256


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
        value: `[B, S, K, C]`.
        places: which tokens these are.
        window: how many keys a query sees, itself included; None: all before it.
        logit_cap: soft cap of the scores.

    Returns:
        The output `[B, T, H, C]`, normalised over these keys, and the log-sum-exp of the scores
        `[B, H, T]`, both in float32 (float64 for float64). A query that sees none of the keys has
        output 0 and log-sum-exp -inf.
    """
    batch, length, heads, _ = query.shape
    blocks = _cut(query, key, value, places, window)
    step = partial(_forward_step, blocks, window=window, logit_cap=logit_cap)
    out, lse = jax.lax.map(step, jnp.arange(len(blocks.query)))  # [n, B, K, G·q, C], [n, B, K, G·q]
    groups = heads // key.shape[2]
    lse = lse.reshape(*lse.shape[:3], groups, -1).transpose(1, 2, 3, 0, 4)  # [B, K, G, n, q]
    return _join_queries(out, length, heads), lse.reshape(batch, heads, -1)[..., :length]


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
        out: `[B, T, H, C]`, the output over all keys, not only these.
        lse: `[B, H, T]`, the log-sum-exp over all keys.
        d_out: `[B, T, H, C]`, gradient of that output.
        places: as in `forward_part`.
        window: as in `forward_part`.
        logit_cap: as in `forward_part`.

    Returns:
        Gradients of query, key and value in float32 (float64 for float64), to be added over parts.
    """
    batch, length, heads, width = query.shape
    _, source, kv_heads, _ = key.shape
    blocks = _cut(query, key, value, places, window)
    n, size = len(blocks.query), blocks.query_index.shape[1]
    wide = lse.dtype
    # As in FlashAttention (arXiv:2205.14135): the softmax's row sums come from `d_out · out`.
    row_sums = (d_out.astype(wide) * out.astype(wide)).sum(-1).transpose(0, 2, 1)  # [B, H, T]
    # A query that fills up a block, or sees nothing, has no weights: exp(score - inf) is 0.
    lse = jnp.where(jnp.isfinite(lse), lse, jnp.inf)

    def per_query(x: jax.Array, fill: float) -> jax.Array:
        """`[B, H, T]` → `[n, B, K, G·q]`."""
        x = jnp.pad(x, ((0, 0), (0, 0), (0, n * size - length)), constant_values=fill)
        x = x.reshape(batch, kv_heads, heads // kv_heads, n, size).transpose(3, 0, 1, 2, 4)
        return x.reshape(n, batch, kv_heads, -1)

    rows = (_cut_queries(d_out, kv_heads, size), per_query(lse, jnp.inf), per_query(row_sums, 0.0))
    step: Callable[..., Any] = partial(_backward_step, blocks, window=window, logit_cap=logit_cap)
    # Transposed, so that no matmul contracts the rows of its left side: 2 to 3 times as slow on CPU.
    zeros = jnp.zeros((*blocks.key.shape[:3], width, blocks.key.shape[3]), wide)
    (d_key, d_value), d_query = jax.lax.scan(step, (zeros, zeros), (jnp.arange(n), rows))

    def join_keys(x: jax.Array) -> jax.Array:
        """`[m, B, K, C, s]` → `[B, S, K, C]`."""
        x = x.transpose(1, 0, 4, 2, 3)
        return x.reshape(batch, -1, kv_heads, width)[:, :source]

    return _join_queries(d_query, length, heads), join_keys(d_key), join_keys(d_value)


class _Blocks(NamedTuple):
    """A call cut into n blocks of q queries and m blocks of s keys.

    The G query heads of a key-value head are rows of one matmul, so keys are never repeated.
    """

    query: jax.Array  # [n, B, K, G·q, C], scaled
    key: jax.Array  # [m, B, K, s, C]
    value: jax.Array  # [m, B, K, s, C]
    query_index: jax.Array  # [n, q]
    key_index: jax.Array  # [m, s]
    query_segments: jax.Array  # [n, B, q]
    key_segments: jax.Array  # [m, B, s]
    first: jax.Array  # [n]: the first block of keys that a block of queries sees
    last: jax.Array  # [n]: one after the last


def _cut(
    query: jax.Array, key: jax.Array, value: jax.Array, places: Places, window: int | None
) -> _Blocks:
    length, source, kv_heads = query.shape[1], key.shape[1], key.shape[2]
    # Blocks of equal size, so that little is filled up.
    q = -(-length // -(-length // block_size(length)))
    s = -(-source // -(-source // block_size(source)))
    query_index, key_index, query_segments, key_segments = places
    query_index = _cut_last(query_index, q, -1)
    key_index = _cut_last(key_index, s, _NOWHERE)
    query_segments = _cut_last(query_segments, q, -1)
    key_segments = _cut_last(key_segments, s, -1)
    first, last = _visible(query_index, key_index, query_segments, key_segments, window)

    def cut_keys(x: jax.Array) -> jax.Array:
        """`[B, S, K, C]` → `[m, B, K, s, C]`."""
        x = jnp.pad(x, ((0, 0), (0, -source % s), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], -1, s, *x.shape[2:]).transpose(1, 0, 3, 2, 4)

    return _Blocks(
        query=_cut_queries(query * query.shape[-1] ** -0.5, kv_heads, q),
        key=cut_keys(key),
        value=cut_keys(value),
        query_index=query_index,
        key_index=key_index,
        query_segments=query_segments,
        key_segments=key_segments,
        first=first,
        last=last,
    )


def _cut_last(x: jax.Array, size: int, fill: int) -> jax.Array:
    """`[..., T]` → `[n, ..., size]`."""
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)]
    x = jnp.pad(x, pad, constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)


def _cut_queries(x: jax.Array, kv_heads: int, size: int) -> jax.Array:
    """`[B, T, H, C]` → `[n, B, K, G·q, C]`."""
    batch, length, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    x = x.reshape(batch, -1, size, kv_heads, heads // kv_heads, width)
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(*x.shape[:3], -1, width)


def _join_queries(x: jax.Array, length: int, heads: int) -> jax.Array:
    """`[n, B, K, G·q, C]` → `[B, T, H, C]`."""
    n, batch, kv_heads, _, width = x.shape
    x = x.reshape(n, batch, kv_heads, heads // kv_heads, -1, width).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, -1, heads, width)[:, :length]


def _visible(
    query_index: jax.Array,
    key_index: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    window: int | None,
) -> tuple[jax.Array, jax.Array]:
    """The first and one after the last block of keys of which a block of queries may see a key.

    By the smallest and largest index and segment of each block: `[n]` each, equal where there is none.
    """

    def bounds(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x.min(-1), x.max(-1)

    # Padding (segment 0) comes after the last document and would else belong to its block's range.
    query_low, query_high = bounds(jnp.where(query_segments == 0, _NOWHERE, query_segments))
    key_low, key_high = bounds(jnp.where(key_segments == 0, _NOWHERE, key_segments))  # [m, B]
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


def _scores(
    blocks: _Blocks, i: jax.Array, j: jax.Array, logit_cap: float | None
) -> tuple[jax.Array, jax.Array | None]:
    """Scores of block i of queries and j of keys `[B, K, G·q, s]`, and their slope by the soft cap."""
    query, key = _at(blocks.query, i), _at(blocks.key, j)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bkqc,bksc->bkqs", query, key, preferred_element_type=wide)
    if logit_cap is None:
        return scores, None
    tanh = jnp.tanh(scores / logit_cap)
    return logit_cap * tanh, 1 - tanh**2


def _mask(
    blocks: _Blocks, i: jax.Array, j: jax.Array, window: int | None, groups: int
) -> jax.Array:
    """Which key of block j each query of block i sees, bool `[B, 1, G·q, s]`."""
    query_index, key_index = _at(blocks.query_index, i)[:, None], _at(blocks.key_index, j)
    visible = key_index <= query_index
    if window is not None:
        visible &= key_index > query_index - window
    segments = _at(blocks.query_segments, i)[:, :, None] == _at(blocks.key_segments, j)[:, None]
    mask = (visible & segments)[:, None, None]  # [B, 1, 1, q, s]
    mask = jnp.broadcast_to(mask, (mask.shape[0], 1, groups, *mask.shape[3:]))
    return mask.reshape(mask.shape[0], 1, -1, mask.shape[-1])


def _forward_step(
    blocks: _Blocks, i: jax.Array, *, window: int | None, logit_cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, K, G·q, C]` and log-sum-exp `[B, K, G·q]` of block i of the queries."""
    shape = blocks.query.shape[1:]
    wide = jnp.promote_types(blocks.query.dtype, jnp.float32)
    groups = shape[2] // blocks.query_index.shape[1]
    lowest = jnp.finfo(wide).min

    def body(j: jax.Array, carry: tuple) -> tuple:
        out, highest, total = carry
        scores, _ = _scores(blocks, i, j, logit_cap)
        scores = jnp.where(_mask(blocks, i, j, window, groups), scores, lowest)
        higher = jnp.maximum(highest, scores.max(-1))
        # The running maximum starts above `lowest`: what is masked has weight 0, always.
        weights = jnp.exp(scores - higher[..., None])
        shrink = jnp.exp(highest - higher)
        value = _at(blocks.value, j)
        added = jnp.einsum(
            "bkqs,bksc->bkqc", weights.astype(value.dtype), value, preferred_element_type=wide
        )
        return out * shrink[..., None] + added, higher, total * shrink + weights.sum(-1)

    start = (jnp.zeros(shape, wide), jnp.full(shape[:3], lowest / 2), jnp.zeros(shape[:3], wide))
    out, highest, total = _over_keys(blocks, i, body, start)
    seen = total > 0
    safe = jnp.where(seen, total, 1)
    return out / safe[..., None], jnp.where(seen, highest + jnp.log(safe), -jnp.inf)


def _backward_step(
    blocks: _Blocks,
    carry: tuple[jax.Array, ...],
    x: tuple[jax.Array, tuple[jax.Array, ...]],
    *,
    window: int | None,
    logit_cap: float | None,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Gradient of block i of the queries, what its keys receive added to the carry."""
    i, (d_out, lse, row_sums) = x
    query = _at(blocks.query, i)
    wide, narrow = lse.dtype, query.dtype
    groups = query.shape[2] // blocks.query_index.shape[1]
    d_out = d_out.astype(narrow)
    query_t, d_out_t = query.swapaxes(-1, -2), d_out.swapaxes(-1, -2)  # [B, K, C, G·q]

    def matmul(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(spec, left, right, preferred_element_type=wide)

    def body(j: jax.Array, carry: tuple) -> tuple:
        d_query, d_key, d_value = carry
        scores, slope = _scores(blocks, i, j, logit_cap)
        mask = _mask(blocks, i, j, window, groups)
        weights = jnp.where(mask, jnp.exp(scores - lse[..., None]), 0)
        d_weights = matmul("bkqc,bksc->bkqs", d_out, _at(blocks.value, j))
        d_scores = weights * (d_weights - row_sums[..., None])
        if slope is not None:
            d_scores *= slope
        d_scores, weights = d_scores.astype(narrow), weights.astype(narrow)
        d_query += matmul("bkqs,bksc->bkqc", d_scores, _at(blocks.key, j))
        d_key = d_key.at[j].add(matmul("bkcq,bkqs->bkcs", query_t, d_scores))
        d_value = d_value.at[j].add(matmul("bkcq,bkqs->bkcs", d_out_t, weights))
        return d_query, d_key, d_value

    start = (jnp.zeros(query.shape, wide), *carry)
    d_query, *carry = _over_keys(blocks, i, body, start)
    return tuple(carry), d_query * query.shape[-1] ** -0.5


def _over_keys(blocks: _Blocks, i: jax.Array, body: Callable, start: tuple) -> Any:
    """`body(j, carry)` over the blocks of keys that block i of the queries may see."""
    if len(blocks.key) == 1:
        return body(0, start)  # a loop of one turn would cost a small model more than it saves
    return jax.lax.fori_loop(_at(blocks.first, i), _at(blocks.last, i), body, start)


def _at(x: jax.Array, i: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
