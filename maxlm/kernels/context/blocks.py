"""Attention of some queries over some keys by blocks, forward and backward, with an online softmax.

In: queries and keys of which one device holds a part, and where in the row each part begins; out: a
state that further keys can be added to, or gradients. Only one block of scores exists at a time, so
memory is linear in the length, and blocks that causality, the window or the documents mask wholly
are not computed (FlashAttention-2, arXiv:2307.08691, written in XLA's own operations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Tokens per block of queries and of keys: 512 × 512 float32 scores of 32 heads are 32 MB.
BLOCK = 512

Scalar = jax.Array | int


class Features(NamedTuple):
    """What an attention does besides causality and segments; static."""

    window: int | None
    logit_cap: float | None


class Tokens(NamedTuple):
    """Arrays of the same tokens, all `[B, T, …]`; a part of a row or several."""

    arrays: tuple[jax.Array, ...]
    segments: jax.Array  # [B, T] int32


class Part(NamedTuple):
    """Consecutive tokens of a row, among those that a device holds."""

    offset: Scalar  # the first one's index in the device's arrays
    start: Scalar  # its index in the row
    length: int


class Block(NamedTuple):
    """Tokens among those that a device holds; few enough for their scores to exist."""

    offset: Scalar
    size: int


Mask = Callable[[], jax.Array]  # which key each query sees, bool [B, 1, 1, T, S]


class Softmax(NamedTuple):
    """An online softmax over the keys seen so far."""

    out: jax.Array  # [B, T, K, G, C] Σ exp(score − largest) × value
    largest: jax.Array  # [B, T, K, G]
    total: jax.Array  # [B, T, K, G] Σ exp(score − largest)

    def finish(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """The attended values `[B, T, K, G, C]` and the log-sum-exp of the scores `[B, T, K, G]`."""
        out = (self.out / self.total[..., None]).astype(dtype)
        return out, self.largest + jnp.log(self.total)


class Gradients(NamedTuple):
    """Sums of gradients, in the wide dtype."""

    query: jax.Array  # [B, T, K, G, C]
    key: jax.Array  # [B, S, K, C]
    value: jax.Array  # [B, S, K, C]


def empty_softmax(query: jax.Array) -> Softmax:
    """The state of queries `[B, T, K, G, C]` that have seen no key."""
    wide = wide_dtype(query)
    rows = jnp.zeros(query.shape[:-1], wide)
    # A finite minimum: the difference of two infinities would be NaN.
    return Softmax(jnp.zeros(query.shape, wide), rows + jnp.finfo(wide).min, rows)


def add_keys(
    softmax: Softmax,
    queries: Tokens,
    keys: Tokens,
    query_part: Part,
    key_part: Part,
    features: Features,
) -> Softmax:
    """Let queries of one part see the keys of another.

    Args:
        softmax: of all queries that the device holds.
        queries: arrays `(query,)`, `[B, T, K, G, C]`, scaled.
        keys: arrays `(key, value)`, each `[B, S, K, C]`.
        query_part: which queries.
        key_part: which keys.
        features: window and soft-cap.
    """

    def block(softmax: Softmax, i: Block, j: Block, mask: Mask) -> Softmax:
        (query,), (key, value) = _slices(queries.arrays, i), _slices(keys.arrays, j)
        before = Softmax(*_slices(softmax, i))
        scores, _ = _scores(query, key, features)  # [B, K, G, T, S]
        visible = mask()
        masked = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        largest = jnp.maximum(before.largest, _token_major(masked.max(-1)))
        weights = jnp.where(visible, jnp.exp(scores - _head_major(largest)[..., None]), 0)
        kept = jnp.exp(before.largest - largest)
        added = jnp.einsum(
            "bkgts,bskc->btkgc",
            weights.astype(value.dtype),
            value,
            preferred_element_type=scores.dtype,
        )
        after = Softmax(
            before.out * kept[..., None] + added,
            largest,
            before.total * kept + _token_major(weights.sum(-1)),
        )
        return Softmax(*_updated(softmax, after, i))

    return _over_blocks(block, softmax, queries, keys, query_part, key_part, features)


def add_gradients(
    gradients: Gradients,
    queries: Tokens,
    keys: Tokens,
    query_part: Part,
    key_part: Part,
    features: Features,
) -> Gradients:
    """Add what queries of one part and keys of another give to the gradients of both.

    Args:
        gradients: of all queries and keys that the device holds.
        queries: arrays `(query, d_out, log_sum, row_sums)`: as in `add_keys`, the gradient of the
            result, the log-sum-exp and `sum(d_out × out)` over C, `[B, T, K, G]` each.
        keys: arrays `(key, value)`.
        query_part: which queries.
        key_part: which keys.
        features: window and soft-cap.
    """

    def block(gradients: Gradients, i: Block, j: Block, mask: Mask) -> Gradients:
        query, d_out, log_sum, row_sums = _slices(queries.arrays, i)
        key, value = _slices(keys.arrays, j)
        scores, slope = _scores(query, key, features)
        wide = scores.dtype
        weights = jnp.where(mask(), jnp.exp(scores - _head_major(log_sum)[..., None]), 0)
        d_weights = jnp.einsum("btkgc,bskc->bkgts", d_out, value, preferred_element_type=wide)
        d_scores = weights * (d_weights - _head_major(row_sums)[..., None])
        if slope is not None:
            d_scores = d_scores * slope
        weights, d_scores = weights.astype(query.dtype), d_scores.astype(query.dtype)

        def product(dims: str, *arrays: jax.Array) -> jax.Array:
            return jnp.einsum(dims, *arrays, preferred_element_type=wide)

        d_query, d_key, d_value = gradients
        (d_query,) = _added((d_query,), (product("bkgts,bskc->btkgc", d_scores, key),), i)
        added = (
            product("bkgts,btkgc->bskc", d_scores, query),
            product("bkgts,btkgc->bskc", weights, d_out),
        )
        return Gradients(d_query, *_added((d_key, d_value), added, j))

    return _over_blocks(block, gradients, queries, keys, query_part, key_part, features)


def wide_dtype(array: jax.Array) -> Any:
    """The dtype of sums over `array`: float32, or float64."""
    return jnp.promote_types(array.dtype, jnp.float32)


def _over_blocks(
    step: Callable[..., Any],
    carry: Any,
    queries: Tokens,
    keys: Tokens,
    query_part: Part,
    key_part: Part,
    features: Features,
) -> Any:
    """Run `step(carry, query block, key block, mask)` on every pair that is not wholly masked."""
    rows, columns = _block_size(query_part.length), _block_size(key_part.length)
    window = features.window

    def one_query_block(i: Scalar, carry: Any) -> Any:
        query_block = Block(query_part.offset + i * rows, rows)
        first = query_part.start + i * rows - key_part.start  # among the keys
        (query_segments,) = _slices((queries.segments,), query_block)

        def one_key_block(j: Scalar, carry: Any) -> Any:
            key_block = Block(key_part.offset + j * columns, columns)
            (key_segments,) = _slices((keys.segments,), key_block)

            def mask() -> jax.Array:
                query_index = (first + jnp.arange(rows))[:, None]
                key_index = (j * columns + jnp.arange(columns))[None, :]
                visible = key_index <= query_index  # [T, S]
                if window is not None:
                    visible &= key_index > query_index - window
                same = query_segments[:, :, None] == key_segments[:, None, :]
                return (visible & same)[:, None, None]  # [B, 1, 1, T, S]

            return jax.lax.cond(
                _documents_meet(query_segments, key_segments),
                lambda carry: step(carry, query_block, key_block, mask),
                lambda carry: carry,
                carry,
            )

        # Blocks before the window's first key and after the last query are not visited.
        lower = 0 if window is None else jnp.maximum(first - window + 1, 0) // columns
        upper = jnp.clip((first + rows - 1) // columns + 1, 0, key_part.length // columns)
        return jax.lax.fori_loop(lower, upper, one_key_block, carry)

    return jax.lax.fori_loop(0, query_part.length // rows, one_query_block, carry)


def _documents_meet(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """Whether any row's queries and keys can be of one document: a bool scalar, true in doubt."""
    starts_before_end = query_segments.min(1) <= key_segments.max(1)
    return jnp.any(starts_before_end & (key_segments.min(1) <= query_segments.max(1)))


def _scores(
    query: jax.Array, key: jax.Array, features: Features
) -> tuple[jax.Array, jax.Array | None]:
    """Scores `[B, K, G, T, S]` in the wide dtype, and the soft-cap's slope at each."""
    wide = wide_dtype(query)
    scores = jnp.einsum("btkgc,bskc->bkgts", query, key, preferred_element_type=wide)
    cap = features.logit_cap
    if cap is None:
        return scores, None
    squashed = jnp.tanh(scores / cap)
    return cap * squashed, 1 - jnp.square(squashed)


def _block_size(length: int) -> int:
    return next(size for size in range(min(BLOCK, length), 0, -1) if length % size == 0)


def _slices(arrays: tuple[jax.Array, ...], block: Block) -> list[jax.Array]:
    return [jax.lax.dynamic_slice_in_dim(x, block.offset, block.size, axis=1) for x in arrays]


def _updated(arrays: Any, new: Any, block: Block) -> list[jax.Array]:
    return [
        jax.lax.dynamic_update_slice_in_dim(x, y, block.offset, axis=1)
        for x, y in zip(arrays, new, strict=True)
    ]


def _added(arrays: Any, terms: Any, block: Block) -> list[jax.Array]:
    sums = [x + y for x, y in zip(_slices(arrays, block), terms, strict=True)]
    return _updated(arrays, sums, block)


def _head_major(rows: jax.Array) -> jax.Array:
    return rows.transpose(0, 2, 3, 1)  # [B, T, K, G] → [B, K, G, T]


def _token_major(rows: jax.Array) -> jax.Array:
    return rows.transpose(0, 3, 1, 2)  # [B, K, G, T] → [B, T, K, G]
