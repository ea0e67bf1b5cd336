"""Attention of some queries over some of their keys, block by block, in plain XLA.

In: queries, keys, values and which tokens of the sequence each is; out: the output over these keys
and the log-sum-exp of the scores, or the gradients. `forward_part` and `backward_part` do it for keys
that are all there, as `chunked` needs. Where keys come one part after another (a ring of devices),
queries and keys are cut into blocks once, and each part is added to a state: `add_keys`, then `finish`;
`add_gradients`, then `finish_gradients`.

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

from maxlm.kernels.attention.blocks import (
    Keys,
    Queries,
    cut_heads,
    cut_keys,
    cut_queries,
    join_heads,
    visible,
)

_Number = jax.Array | int
_OverKeys = Callable[[Callable[..., Any], Any], Any]


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


class Softmax(NamedTuple):
    """An online softmax of blocks of queries over the keys added so far, in the wide dtype."""

    out: jax.Array  # [n, B, K, G·q, C], Σ exp(score − highest) × value
    highest: jax.Array  # [n, B, K, G·q]
    total: jax.Array  # [n, B, K, G·q], Σ exp(score − highest)


class Rows(NamedTuple):
    """What the backward pass knows of each query over all its keys."""

    d_out: jax.Array  # [n, B, K, G·q, C]
    lse: jax.Array  # [n, B, K, G·q]
    row_sums: jax.Array  # [n, B, K, G·q], Σ d_out × out over C


class Gradients(NamedTuple):
    """Sums of gradients in blocks, in the wide dtype.

    Those of keys are transposed, so that no matmul contracts the rows of its left side: 2 to 3 times
    as slow on CPU.
    """

    query: jax.Array  # [n, B, K, G·q, C], of the scaled queries
    key: jax.Array  # [m, B, K, C, s]
    value: jax.Array  # [m, B, K, C, s]


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
    queries, keys = _cut(query, key, value, places)
    softmax = add_keys(no_keys(queries), queries, keys, window=window, logit_cap=logit_cap)
    return finish(softmax, query.shape[1], query.shape[2], softmax.out.dtype)


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
    queries, keys = _cut(query, key, value, places)
    rows = cut_rows(queries, out, lse, d_out)
    gradients = no_gradients(queries, keys)
    gradients = add_gradients(gradients, queries, keys, rows, window=window, logit_cap=logit_cap)
    return finish_gradients(gradients, query.shape, key.shape)


def cut_rows(queries: Queries, out: jax.Array, lse: jax.Array, d_out: jax.Array) -> Rows:
    """What `backward_part` is told of the output over all keys, in the blocks of `queries`."""
    n, batch, kv_heads = queries.query.shape[:3]
    size, length, heads = queries.token_index.shape[1], out.shape[1], out.shape[2]
    wide = lse.dtype
    # As in FlashAttention (arXiv:2205.14135): the softmax's row sums come from `d_out · out`.
    row_sums = (d_out.astype(wide) * out.astype(wide)).sum(-1).transpose(0, 2, 1)  # [B, H, T]
    # A query that fills up a block, or sees nothing, has no weights: exp(score - inf) is 0.
    lse = jnp.where(jnp.isfinite(lse), lse, jnp.inf)

    def cut(x: jax.Array, fill: float) -> jax.Array:
        """`[B, H, T]` → `[n, B, K, G·q]`."""
        x = jnp.pad(x, ((0, 0), (0, 0), (0, n * size - length)), constant_values=fill)
        x = x.reshape(batch, kv_heads, heads // kv_heads, n, size).transpose(3, 0, 1, 2, 4)
        return x.reshape(n, batch, kv_heads, -1)

    d_out = cut_heads(d_out.astype(queries.query.dtype), kv_heads, size)
    return Rows(d_out, cut(lse, jnp.inf), cut(row_sums, 0.0))


def no_keys(queries: Queries) -> Softmax:
    """The state of queries that have seen nothing."""
    wide = jnp.promote_types(queries.query.dtype, jnp.float32)
    shape = queries.query.shape
    # The running maximum starts above what a masked score is set to: that has weight 0, always.
    highest = jnp.full(shape[:-1], jnp.finfo(wide).min / 2, wide)
    return Softmax(jnp.zeros(shape, wide), highest, jnp.zeros(shape[:-1], wide))


def no_gradients(queries: Queries, keys: Keys) -> Gradients:
    """Sums of nothing."""
    wide = jnp.promote_types(queries.query.dtype, jnp.float32)
    zeros = jnp.zeros(keys.key.swapaxes(-1, -2).shape, wide)
    return Gradients(jnp.zeros(queries.query.shape, wide), zeros, zeros)


def finish(
    softmax: Softmax, length: int, heads: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, T, H, C]` in `dtype` and log-sum-exp `[B, H, T]`, as `forward_part` returns them."""
    seen = softmax.total > 0
    safe = jnp.where(seen, softmax.total, 1)
    lse = jnp.where(seen, softmax.highest + jnp.log(safe), -jnp.inf)  # [n, B, K, G·q]
    batch, groups = lse.shape[1], heads // lse.shape[2]
    lse = lse.reshape(*lse.shape[:3], groups, -1).transpose(1, 2, 3, 0, 4)  # [B, K, G, n, q]
    out = join_heads((softmax.out / safe[..., None]).astype(dtype), length, heads)
    return out, lse.reshape(batch, heads, -1)[..., :length]


def finish_gradients(
    gradients: Gradients, query_shape: tuple[int, ...], key_shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of gradients in the shapes of query, key and value."""
    _, length, heads, width = query_shape

    def join(x: jax.Array) -> jax.Array:
        """`[m, B, K, C, s]` → `[B, S, K, C]`."""
        x = x.transpose(1, 0, 4, 2, 3)
        return x.reshape(x.shape[0], -1, *key_shape[2:])[:, : key_shape[1]]

    d_query = join_heads(gradients.query * width**-0.5, length, heads)
    return d_query, join(gradients.key), join(gradients.value)


def add_keys(
    softmax: Softmax, queries: Queries, keys: Keys, *, window: int | None, logit_cap: float | None
) -> Softmax:
    """Let queries see further keys."""
    wide = softmax.out.dtype

    def step(i: _Number, j: _Number, carry: Softmax) -> Softmax:
        out, highest, total = carry
        scores, _ = _scores(queries, keys, i, j, logit_cap)
        scores = jnp.where(_mask(queries, keys, i, j, window), scores, jnp.finfo(wide).min)
        higher = jnp.maximum(highest, scores.max(-1))
        weights = jnp.exp(scores - higher[..., None])
        shrink = jnp.exp(highest - higher)
        value = _at(keys.value, j)
        added = jnp.einsum(
            "bkqs,bksc->bkqc", weights.astype(value.dtype), value, preferred_element_type=wide
        )
        total = total * shrink + weights.sum(-1)
        return Softmax(out * shrink[..., None] + added, higher, total)

    def block(i: _Number, softmax: Softmax, over_keys: _OverKeys) -> Softmax:
        before = jax.tree.map(lambda x: _at(x, i), softmax)
        return jax.tree.map(partial(_put, i=i), softmax, over_keys(step, before))

    return _over_blocks(block, softmax, queries, keys, window)


def add_gradients(
    gradients: Gradients,
    queries: Queries,
    keys: Keys,
    rows: Rows,
    *,
    window: int | None,
    logit_cap: float | None,
) -> Gradients:
    """Add what queries and keys give to the gradients of each other."""
    wide, narrow = rows.lse.dtype, queries.query.dtype

    def matmul(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(spec, left, right, preferred_element_type=wide)

    def step(i: _Number, j: _Number, carry: Gradients) -> Gradients:
        d_query, d_key, d_value = carry
        d_out, lse, row_sums = (_at(x, i) for x in rows)
        query_t, d_out_t = _at(queries.query, i).swapaxes(-1, -2), d_out.swapaxes(-1, -2)
        scores, slope = _scores(queries, keys, i, j, logit_cap)
        mask = _mask(queries, keys, i, j, window)
        weights = jnp.where(mask, jnp.exp(scores - lse[..., None]), 0)
        d_weights = matmul("bkqc,bksc->bkqs", d_out, _at(keys.value, j))
        d_scores = weights * (d_weights - row_sums[..., None])
        if slope is not None:
            d_scores *= slope
        d_scores, weights = d_scores.astype(narrow), weights.astype(narrow)
        d_query += matmul("bkqs,bksc->bkqc", d_scores, _at(keys.key, j))
        d_key = d_key.at[j].add(matmul("bkcq,bkqs->bkcs", query_t, d_scores))
        d_value = d_value.at[j].add(matmul("bkcq,bkqs->bkcs", d_out_t, weights))
        return Gradients(d_query, d_key, d_value)

    def block(i: _Number, gradients: Gradients, over_keys: _OverKeys) -> Gradients:
        after = over_keys(step, gradients._replace(query=_at(gradients.query, i)))
        return after._replace(query=_put(gradients.query, after.query, i=i))

    return _over_blocks(block, gradients, queries, keys, window)


def _cut(
    query: jax.Array, key: jax.Array, value: jax.Array, places: Places
) -> tuple[Queries, Keys]:
    queries = cut_queries(query, key.shape[2], places.query_index, places.query_segments)
    return queries, cut_keys(key, value, places.key_index, places.key_segments)


def _scores(
    queries: Queries, keys: Keys, i: _Number, j: _Number, logit_cap: float | None
) -> tuple[jax.Array, jax.Array | None]:
    """Scores of block i of queries and j of keys `[B, K, G·q, s]`, and their slope by the soft cap."""
    query, key = _at(queries.query, i), _at(keys.key, j)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bkqc,bksc->bkqs", query, key, preferred_element_type=wide)
    if logit_cap is None:
        return scores, None
    tanh = jnp.tanh(scores / logit_cap)
    return logit_cap * tanh, 1 - tanh**2


def _mask(queries: Queries, keys: Keys, i: _Number, j: _Number, window: int | None) -> jax.Array:
    """Which key of block j each query of block i sees, bool `[B, 1, G·q, s]`."""
    groups = queries.query.shape[3] // queries.token_index.shape[1]
    query_index, key_index = _at(queries.token_index, i)[:, None], _at(keys.token_index, j)
    seen = key_index <= query_index
    if window is not None:
        seen &= key_index > query_index - window
    segments = _at(queries.segments, i)[:, :, None] == _at(keys.segments, j)[:, None]
    mask = (seen & segments)[:, None, None]  # [B, 1, 1, q, s]
    mask = jnp.broadcast_to(mask, (mask.shape[0], 1, groups, *mask.shape[3:]))
    return mask.reshape(mask.shape[0], 1, -1, mask.shape[-1])


def _over_blocks(
    block: Callable[[_Number, Any, _OverKeys], Any],
    carry: Any,
    queries: Queries,
    keys: Keys,
    window: int | None,
) -> Any:
    """`block(i, carry, over_keys)` over the blocks of queries, one after another in one buffer.

    `over_keys(step, carry)` runs `step(i, j, carry)` over the blocks of keys that block i may see. A
    loop of one turn is none: it would cost a small model more than it saves.
    """
    first, last = visible(queries, keys, window)

    def one(i: _Number, carry: Any) -> Any:
        def over_keys(step: Callable[..., Any], carry: Any) -> Any:
            if len(keys.key) == 1:
                return step(i, 0, carry)
            return jax.lax.fori_loop(_at(first, i), _at(last, i), partial(step, i), carry)

        return block(i, carry, over_keys)

    if len(queries.query) == 1:
        return one(0, carry)
    return jax.lax.fori_loop(0, len(queries.query), one, carry)


def _at(x: jax.Array, i: _Number) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x: jax.Array, block: jax.Array, *, i: _Number) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, block, i, 0)
