"""Attention in plain XLA with memory linear in length, forward and backward.

In: one device's queries, the keys and values that they see, and segment ids; out: the attended values,
as `reference_attention` defines them. Only the output and the log-sum-exp of the scores are kept for
the backward pass; `parts` does the work.
"""

from __future__ import annotations

from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.attention.features import Features
from maxlm.kernels.attention.parts import Places, backward_part, forward_part, whole_rows
from maxlm.kernels.attention.sinks import add_sinks, sink_gradient
from maxlm.kernels.one_mapped import one_mapped

FEATURES = Features(platforms=("cpu", "gpu", "tpu"), dtypes=("bfloat16", "float32", "float64"))


def chunked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Self-attention of whole rows; arguments and result as in `attention`, on one device."""
    places = whole_rows(segment_ids)
    return attend_places(window, logit_cap, query, key, value, places, sinks)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_places(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attention of some queries over all keys that they see, on one device.

    Kept for the backward pass and named for rematerialisation: the output (`attention_out`) and the
    log-sum-exp (`attention_lse`, `[B, H, T]`).

    Args:
        window: as in `attention`.
        logit_cap: as in `attention`.
        query: `[B, T, H, C]`.
        key: `[B, S, K, C]`.
        value: `[B, S, K, V]`.
        places: which tokens of their rows these are.
        sinks: `[H]`, as in `attention`.

    Returns:
        `[B, T, H, V]`.
    """
    return _forward(window, logit_cap, query, key, value, places, sinks)[0]


def _forward(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    sinks: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    part = one_mapped(partial(forward_part, window=window, logit_cap=logit_cap))
    out, lse = part(query, key, value, places)
    if sinks is not None:
        out, lse = add_sinks(out, lse, sinks)
    out = checkpoint_name(out.astype(query.dtype), "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (query, key, value, places, sinks, out, lse)


def _backward(
    window: int | None, logit_cap: float | None, residuals: tuple, d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    query, key, value, places, sinks, out, lse = residuals
    part = one_mapped(partial(backward_part, window=window, logit_cap=logit_cap))
    grads = part(query, key, value, out, lse, d_out, places)
    d_sinks = None if sinks is None else sink_gradient(out, lse, d_out, sinks)
    return (*(g.astype(query.dtype) for g in grads), None, d_sinks)


attend_places.defvjp(_forward, _backward)
