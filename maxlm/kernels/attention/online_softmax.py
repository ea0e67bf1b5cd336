"""Attention of blocks of queries over blocks of keys, in plain XLA, added up in a state.

In: queries and keys cut into blocks; out: the output over the keys added so far and the log-sum-exp of
the scores, or the gradients: `add_keys`, then `finish`; `add_gradients`, then `finish_queries` and
`finish_keys`.
Keys may come one part after another, as in a ring of devices.

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
    join_heads,
    visible,
)
from maxlm.kernels.attention.turns import EXPECTED_TURNS

_Number = jax.Array | int
_OverKeys = Callable[[Callable[..., Any], Any], Any]


class Softmax(NamedTuple):
    """An online softmax of blocks of queries over the keys added so far, in the wide dtype."""

    out: jax.Array  # [n, B, K, G·q, V], Σ exp(score − highest) × value
    highest: jax.Array  # [n, B, K, G·q]
    total: jax.Array  # [n, B, K, G·q], Σ exp(score − highest)


class Rows(NamedTuple):
    """What the backward pass knows of each query over all its keys."""

    d_out: jax.Array  # [n, B, K, G·q, V]
    lse: jax.Array  # [n, B, K, G·q]
    row_sums: jax.Array  # [n, B, K, G·q], Σ d_out × out over V


class Gradients(NamedTuple):
    """Sums of gradients in blocks, in the wide dtype.

    Those of keys are transposed, so that no matmul contracts the rows of its left side: 2 to 3 times
    as slow on CPU.
    """

    query: jax.Array  # [n, B, K, G·q, C], of the scaled queries
    key: jax.Array  # [m, B, K, C, s]
    value: jax.Array  # [m, B, K, V, s]


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


def no_keys(queries: Queries, value_dim: int) -> Softmax:
    """The state of queries that have seen nothing, of values of width V."""
    wide = jnp.promote_types(queries.query.dtype, jnp.float32)
    shape = queries.query.shape[:-1]
    # The running maximum starts above what a masked score is set to: that has weight 0, always.
    highest = jnp.full(shape, jnp.finfo(wide).min / 2, wide)
    return Softmax(jnp.zeros((*shape, value_dim), wide), highest, jnp.zeros(shape, wide))


def no_key_gradients(keys: Keys) -> tuple[jax.Array, jax.Array]:
    """Sums of nothing for keys and values, as `Gradients` has them."""
    wide = jnp.promote_types(keys.key.dtype, jnp.float32)
    key, value = (jnp.zeros(x.swapaxes(-1, -2).shape, wide) for x in (keys.key, keys.value))
    return key, value


def no_gradients(queries: Queries, d_key: jax.Array, d_value: jax.Array) -> Gradients:
    """The sums of keys and values so far, and nothing yet for the queries."""
    return Gradients(jnp.zeros(queries.query.shape, d_key.dtype), d_key, d_value)


def finish(
    softmax: Softmax, length: int, heads: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, T, H, V]` in `dtype` and log-sum-exp `[B, H, T]`, as `forward_part` returns them."""
    seen = softmax.total > 0
    safe = jnp.where(seen, softmax.total, 1)
    lse = jnp.where(seen, softmax.highest + jnp.log(safe), -jnp.inf)  # [n, B, K, G·q]
    batch, groups = lse.shape[1], heads // lse.shape[2]
    lse = lse.reshape(*lse.shape[:3], groups, -1).transpose(1, 2, 3, 0, 4)  # [B, K, G, n, q]
    out = join_heads((softmax.out / safe[..., None]).astype(dtype), length, heads)
    return out, lse.reshape(batch, heads, -1)[..., :length]


def finish_queries(d_query: jax.Array, length: int, heads: int) -> jax.Array:
    """The queries' gradient `[B, T, H, C]`."""
    return join_heads(d_query * d_query.shape[-1] ** -0.5, length, heads)


def finish_keys(d_key: jax.Array, d_value: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys `[B, S, K, C]` and values `[B, S, K, V]`, of so many tokens."""

    def join(x: jax.Array) -> jax.Array:
        """`[m, B, K, C, s]` → `[B, S, K, C]`."""
        x = x.transpose(1, 0, 4, 2, 3)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    return join(d_key), join(d_value)


def add_keys(
    softmax: Softmax,
    queries: Queries,
    keys: Keys,
    *,
    window: int | None,
    logit_cap: float | None,
    turns: float,
) -> Softmax:
    """Let queries see further keys; `turns`: of `turns.expected_turns`."""
    wide = softmax.out.dtype

    def block(i: _Number, softmax: Softmax, over_keys: _OverKeys) -> Softmax:
        def step(j: _Number, carry: Softmax) -> Softmax:
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

        before = jax.tree.map(lambda x: _at(x, i), softmax)
        return jax.tree.map(partial(_put, i=i), softmax, over_keys(step, before))

    return _over_blocks(block, softmax, queries, keys, window, turns)


def add_gradients(
    gradients: Gradients,
    queries: Queries,
    keys: Keys,
    rows: Rows,
    *,
    window: int | None,
    logit_cap: float | None,
    turns: float,
) -> Gradients:
    """Add what queries and keys give to the gradients of each other; `turns` as in `add_keys`."""
    wide, narrow = rows.lse.dtype, queries.query.dtype

    def matmul(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(spec, left, right, preferred_element_type=wide)

    def block(i: _Number, gradients: Gradients, over_keys: _OverKeys) -> Gradients:
        d_out, lse, row_sums = (_at(x, i) for x in rows)
        query_t, d_out_t = _at(queries.query, i).swapaxes(-1, -2), d_out.swapaxes(-1, -2)

        def step(j: _Number, carry: Gradients) -> Gradients:
            d_query, d_key, d_value = carry
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

        after = over_keys(step, gradients._replace(query=_at(gradients.query, i)))
        return after._replace(query=_put(gradients.query, after.query, i=i))

    return _over_blocks(block, gradients, queries, keys, window, turns)


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
    turns: float,
) -> Any:
    """`block(i, carry, over_keys)` over the blocks of queries, one after another in one buffer.

    `over_keys(step, carry)` runs `step(j, carry)` over the blocks of keys that block i may see. A
    loop of one turn is none: it would cost a small model more than it saves.
    """
    first, last = visible(queries, keys, window)

    def one(i: _Number, carry: Any) -> Any:
        def over_keys(step: Callable[..., Any], carry: Any) -> Any:
            if len(keys.key) == 1:
                return step(0, carry)
            with jax.named_scope(f"{EXPECTED_TURNS}{turns:g}"):
                return jax.lax.fori_loop(_at(first, i), _at(last, i), step, carry)

        return block(i, carry, over_keys)

    if len(queries.query) == 1:
        return one(0, carry)
    return jax.lax.fori_loop(0, len(queries.query), one, carry)


def _at(x: jax.Array, i: _Number) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x: jax.Array, block: jax.Array, *, i: _Number) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, block, i, 0)
