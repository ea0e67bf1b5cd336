"""Attention in plain XLA with memory linear in length, forward and backward.

In: one device's queries, keys, values and segment ids; out: the attended values, as
`reference_attention` defines them. Only the output and the log-sum-exp of the scores are kept for the
backward pass; `parts` does the work.
"""

from __future__ import annotations

from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.attention.features import Features
from maxlm.kernels.attention.parts import backward_part, forward_part, whole_rows
from maxlm.kernels.one_mapped import one_mapped

FEATURES = Features(platforms=("cpu", "gpu", "tpu"), dtypes=("bfloat16", "float32", "float64"))


def chunked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Self-attention of whole rows; arguments and result as in `attention`, on one device.

    Kept for the backward pass and named for rematerialisation: the output (`attention_out`) and the
    log-sum-exp (`attention_lse`, `[B, H, T]`).
    """
    return _attention(window, logit_cap, query, key, value, segment_ids)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    out, _ = _forward(window, logit_cap, query, key, value, segment_ids)
    return out


def _forward(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    part = one_mapped(partial(forward_part, window=window, logit_cap=logit_cap))
    out, lse = part(query, key, value, whole_rows(segment_ids))
    out = checkpoint_name(out.astype(query.dtype), "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (query, key, value, segment_ids, out, lse)


def _backward(
    window: int | None,
    logit_cap: float | None,
    residuals: tuple[jax.Array, ...],
    d_out: jax.Array,
) -> tuple[jax.Array | None, ...]:
    query, key, value, segment_ids, out, lse = residuals
    part = one_mapped(partial(backward_part, window=window, logit_cap=logit_cap))
    grads = part(query, key, value, out, lse, d_out, whole_rows(segment_ids))
    return (*(g.astype(query.dtype) for g in grads), None)


_attention.defvjp(_forward, _backward)
