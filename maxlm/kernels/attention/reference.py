"""What attention is: causal, with segments, sliding windows, grouped queries, soft-cap and sinks.

In: queries, keys, values and segment ids; out: the attended values. Every other implementation is
tested against this one. It holds all scores at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def reference_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segments: jax.Array,
    key_segments: jax.Array,
    window: int | None = None,
    logit_cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    Query `t` sees key `s` when `s <= t`, both have the same segment, and with a window also
    `s > t - window`.

    Args:
        query: `[B, T, H, C]`.
        key: `[B, S, K, C]`, where H is a multiple of K.
        value: `[B, S, K, V]`.
        query_segments: `[B, T]` int32; 0 is padding.
        key_segments: `[B, S]` int32.
        window: how many keys a query sees, itself included; None: all before it.
        logit_cap: soft cap `cap × tanh(logits / cap)` (Gemma 2, arXiv:2408.00118).
        sinks: `[H]` logits in the softmax's denominator beside the scores, without a value
            (gpt-oss, arXiv:2508.10925); None: none.

    Returns:
        `[B, T, H, V]`, in the query's dtype.
    """
    batch, length, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[2]
    groups = num_heads // num_kv_heads
    # Scaling the queries is cheaper than scaling the scores.
    grouped = (query * head_dim**-0.5).reshape(batch, length, num_kv_heads, groups, head_dim)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("btkgc,bskc->bkgts", grouped, key, preferred_element_type=wide)
    mask = _mask(query_segments, key_segments, window)
    weights = softmax_weights(scores, mask, logit_cap=logit_cap, sinks=sinks).astype(value.dtype)
    out = jnp.einsum("bkgts,bskc->btkgc", weights, value)
    return out.reshape(batch, length, num_heads, value.shape[-1])


def softmax_weights(
    scores: jax.Array, mask: jax.Array, *, logit_cap: float | None, sinks: jax.Array | None
) -> jax.Array:
    """Weights of the keys: soft-capped, masked, with the sinks in the denominator.

    Args:
        scores: `[B, K, G, T, S]`, scaled; H is K × G.
        mask: `[B, T, S]` bool, which key each query sees.
        logit_cap: soft cap, or None.
        sinks: `[H]`, or None.

    Returns:
        `[B, K, G, T, S]` in the dtype of the scores.
    """
    if logit_cap is not None:
        scores = logit_cap * jnp.tanh(scores / logit_cap)
    # A finite minimum keeps rows that see nothing (padding) free of NaN.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    column = sinks.astype(scores.dtype).reshape(*scores.shape[1:3], 1, 1)
    column = jnp.broadcast_to(column, (*scores.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([scores, column], axis=-1), axis=-1)[..., :-1]


def _mask(
    query_segments: jax.Array,
    key_segments: jax.Array,
    window: int | None,
) -> jax.Array:
    """Which key each query sees, bool `[B, T, S]`."""
    length, source = query_segments.shape[1], key_segments.shape[1]
    query_index = jnp.arange(length)[:, None]
    key_index = jnp.arange(source)[None, :]
    visible = key_index <= query_index  # [T, S]
    if window is not None:
        visible &= key_index > query_index - window
    return visible & (query_segments[:, :, None] == key_segments[:, None, :])  # [B, T, S]
