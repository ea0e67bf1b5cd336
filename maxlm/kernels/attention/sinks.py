"""Attention sinks: a learned logit of each head in the softmax's denominator, without a value.

In: the output and the log-sum-exp of plain attention over all keys; out: the same with sinks
(arXiv:2309.17453, section 3.3; gpt-oss, arXiv:2508.10925). With the log-sum-exp that comes out,
the backward pass over the keys is that of plain attention: a sink is a key whose value is zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def add_sinks(out: jax.Array, lse: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Let the sinks take their share.

    Args:
        out: `[B, T, H, C]`, normalised over the keys.
        lse: `[B, H, T]`, of the scores; -inf where a query sees no key.
        sinks: `[H]` logits, beside scaled and capped scores.

    Returns:
        The output and the log-sum-exp with the sinks, in the dtype of `lse`.
    """
    total = jnp.logaddexp(lse, sinks.astype(lse.dtype)[:, None])
    share = jnp.exp(lse - total).swapaxes(1, 2)[..., None]  # [B, T, H, 1], of the keys
    return out.astype(lse.dtype) * share, total


def sink_gradient(out: jax.Array, lse: jax.Array, d_out: jax.Array, sinks: jax.Array) -> jax.Array:
    """Gradient of the sinks `[H]`, from the output and the log-sum-exp with them.

    Of a softmax with weights p over values v, that of score i is p_i (d_out · v_i − d_out · out).
    """
    weights = jnp.exp(sinks.astype(lse.dtype)[:, None] - lse)  # [B, H, T]
    row_sums = (d_out.astype(lse.dtype) * out.astype(lse.dtype)).sum(-1).swapaxes(1, 2)
    return -(weights * row_sums).sum((0, 2)).astype(sinks.dtype)
