"""Attention of a device's queries over keys that it holds whole, with memory linear in the length.

The part that the methods share which bring all keys of a row (of some heads) to a device.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.context.blocks import (
    Features,
    Gradients,
    Part,
    Scalar,
    Tokens,
    add_gradients,
    add_keys,
    empty_softmax,
    wide_dtype,
)
from maxlm.kernels.one_mapped import one_mapped

Residuals = tuple[jax.Array, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_whole_keys(
    features: Features,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_start: Scalar,
) -> jax.Array:
    """Causal attention of queries that follow each other over the keys of their row.

    Args:
        features: window and soft-cap.
        query: `[B, T, K, G, C]`, scaled.
        key: `[B, S, K, C]`, from the row's first on.
        value: `[B, S, K, C]`.
        query_segments: `[B, T]` int32.
        key_segments: `[B, S]` int32.
        query_start: index in the row of the first query.

    Returns:
        `[B, T, K, G, C]`.
    """
    return _forward(features, query, key, value, query_segments, key_segments, query_start)[0]


def _forward(
    features: Features,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_start: Scalar,
) -> tuple[jax.Array, Residuals]:
    start = jnp.asarray(query_start)
    given = (query, key, value, query_segments, key_segments, start)
    out, log_sum = one_mapped(partial(_attended, features))(*given)
    out = checkpoint_name(out, "attention_out")
    log_sum = checkpoint_name(log_sum, "attention_lse")
    return out, (*given, out, log_sum)


def _attended(
    features: Features,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_start: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The output and the log-sum-exp of the scores."""
    softmax = add_keys(
        empty_softmax(query),
        Tokens((query,), query_segments),
        Tokens((key, value), key_segments),
        Part(0, query_start, query.shape[1]),
        Part(0, 0, key.shape[1]),
        features,
    )
    return softmax.finish(query.dtype)


def _backward(
    features: Features, residuals: Residuals, d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    return (*one_mapped(partial(_gradients, features))(*residuals, d_out), None, None, None)


attend_whole_keys.defvjp(_forward, _backward)


def _gradients(
    features: Features,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_start: jax.Array,
    out: jax.Array,
    log_sum: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, ...]:
    wide = wide_dtype(query)
    row_sums = (d_out.astype(wide) * out.astype(wide)).sum(-1)  # [B, T, K, G]
    zeros = [jnp.zeros(x.shape, wide) for x in (query, key, value)]
    gradients = add_gradients(
        Gradients(*zeros),
        Tokens((query, d_out, log_sum, row_sums), query_segments),
        Tokens((key, value), key_segments),
        Part(0, query_start, query.shape[1]),
        Part(0, 0, key.shape[1]),
        features,
    )
    return tuple(g.astype(query.dtype) for g in gradients)
