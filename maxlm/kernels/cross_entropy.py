"""Cross-entropy of the output projection that never holds `[tokens, vocab]` logits at once.

In: the hidden states, the output table, targets and weights; out: sums of the loss. The gradient is
computed chunk by chunk in the forward pass, while a chunk's logits exist, so that they are neither
stored nor computed twice (as in Liger, arXiv:2410.10989).

Inside, tokens are laid out as `[shards, tokens of a shard]`, a shard being the tokens that lie on one
device (some rows, and of these some tokens), so that none moves. The table's gradient is summed per
shard, `[shards, V, D]`: a chunk needs no collective for it, and the shards are added once, after the
last chunk. Summed over all tokens at once, XLA would all-reduce the whole table's gradient in every
chunk.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxlm.parallel.axes import constrain, length_shards, mesh_shards, row_shards


class LossSums(NamedTuple):
    """Sums over a batch, so that batches and shards of any size can be added up."""

    total: jax.Array  # Σ weight × (nll + z_loss × log²Z); the one to differentiate
    nll: jax.Array  # Σ weight × negative log-likelihood in nats; carries no gradient
    weight: jax.Array  # Σ weight


class _Options(NamedTuple):
    vocab_size: int
    logit_cap: float | None
    z_loss: float
    chunks: int


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_size: int,
    logit_cap: float | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LossSums:
    """Weighted cross-entropy of `softmax(hidden @ tableᵀ)`.

    Args:
        hidden: `[B, T, D]` in the compute dtype.
        table: `[V, D]` output table, V ≥ vocab_size; the rows above are padding.
        targets: `[B, T]` int32.
        weights: `[B, T]`, 0 where a target does not count.
        vocab_size: logits from here on are masked.
        logit_cap: soft cap of the logits.
        z_loss: weight of log²Z (PaLM, arXiv:2204.02311), which keeps the normaliser near 1.
        chunk: tokens of a shard whose logits exist at once; None: all. Rounded down so that chunks
            divide the shard.

    Returns:
        LossSums, in float32 (float64 when `hidden` is).
    """
    shards = row_shards(targets.shape[0]) * length_shards(targets.shape[1])
    tokens = targets.size // shards
    wanted = -(-tokens // chunk) if chunk else 1
    chunks = next(n for n in range(wanted, tokens + 1) if tokens % n == 0)
    options = _Options(vocab_size, logit_cap, z_loss, chunks)
    weights = weights.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    total, nll = _summed_loss(
        _by_shard(hidden),
        table.astype(hidden.dtype),
        _by_shard(targets),
        _by_shard(weights),
        options,
    )
    return LossSums(total, jax.lax.stop_gradient(nll), weights.sum())


def _by_shard(array: jax.Array) -> jax.Array:
    """`[B, T, …]` → `[shards, tokens of a shard, …]`, each token staying where it is."""
    (batch, length, *rest) = array.shape
    rows, parts = row_shards(batch), length_shards(length)
    split = array.reshape(rows, batch // rows, parts, length // parts, *rest).swapaxes(1, 2)
    whole = split.reshape(rows * parts, batch * length // (rows * parts), *rest)
    return constrain(whole, "token_shards", "tokens", *["activation"] * len(rest))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed_loss(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, options: _Options
) -> tuple[jax.Array, jax.Array]:
    table = _gathered(table)

    def one(sums: Any, chunk: Any) -> tuple[Any, None]:
        total, nll, _ = _chunk_loss(table, options, *chunk)
        return (sums[0] + total, sums[1] + nll), None

    zeros = _zero_sums(weights)
    sums, _ = _over_chunks(one, zeros, (hidden, targets, weights), options.chunks)
    return sums[0].sum(), sums[1].sum()


def _forward(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, options: _Options
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    wide = weights.dtype
    table = _gathered(table)

    def one(carry: Any, chunk: Any) -> tuple[Any, jax.Array]:
        total_sum, nll_sum, table_grad = carry
        total, nll, logits_grad = _chunk_loss(table, options, *chunk)
        logits_grad = logits_grad.astype(table.dtype)
        table_grad += jnp.einsum("stv,std->svd", logits_grad, chunk[0], preferred_element_type=wide)
        hidden_grad = jnp.einsum("stv,vd->std", logits_grad, table)
        return (total_sum + total, nll_sum + nll, table_grad), hidden_grad

    table_grad = jnp.zeros((hidden.shape[0], *table.shape), wide)
    start = (*_zero_sums(weights), constrain(table_grad, "token_shards", "vocab", "activation"))
    chunked = (hidden, targets, weights)
    (total, nll, table_grad), hidden_grad = _over_chunks(one, start, chunked, options.chunks)
    return (total.sum(), nll.sum()), (hidden_grad, _summed_over_shards(table_grad, table.dtype))


def _backward(
    options: _Options, residuals: tuple[jax.Array, jax.Array], cotangents: Any
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden_grad, table_grad = residuals
    scale = cotangents[0]  # the sum's own gradient; nll carries none
    return (
        (hidden_grad * scale).astype(hidden_grad.dtype),
        (table_grad * scale).astype(table_grad.dtype),
        None,
        None,
    )


_summed_loss.defvjp(_forward, _backward)


def _chunk_loss(
    table: jax.Array, options: _Options, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss and nll sums `[shards]` and the loss's gradient by the logits `[shards, T', V]`."""
    wide = weights.dtype
    logits = jnp.einsum("std,vd->stv", hidden, table, preferred_element_type=wide)
    logits = constrain(logits, "token_shards", "tokens", "vocab")
    cap = options.logit_cap
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    if table.shape[0] > options.vocab_size:
        logits = jnp.where(ids < options.vocab_size, logits, jnp.finfo(wide).min)
    largest = logits.max(-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    normalizer = exponentials.sum(-1, keepdims=True)  # [shards, T', 1]
    log_z = (jnp.log(normalizer) + largest)[..., 0]
    is_target = ids == targets[..., None]
    nll = log_z - jnp.where(is_target, logits, 0).sum(-1)
    total = nll + options.z_loss * jnp.square(log_z)

    z_scale = (1 + 2 * options.z_loss * log_z) * weights
    grad = exponentials * (z_scale[..., None] / normalizer)
    grad = grad - jnp.where(is_target, weights[..., None], 0)
    if cap is not None:
        slope = 1 - jnp.square(logits / cap)
        grad = jnp.where(ids < options.vocab_size, grad * slope, 0)
    return (total * weights).sum(1), (nll * weights).sum(1), grad


def _gathered(table: jax.Array) -> jax.Array:
    """The table with whole rows on every device: gathered once, not in every chunk."""
    return constrain(table, "vocab", "activation")


def _summed_over_shards(grad: jax.Array, dtype: Any) -> jax.Array:
    """`[shards, V, D]` → `[V, D]` in `dtype`, sharded as the table is.

    Inside each replica first, which scatters the sum over the width, and then over the replicas: in one
    sum the compiler all-reduces the whole table over all devices (4.1 GB a step and chip for
    128,256 × 4,096 on 64 chips).
    """
    replicas = mesh_shards("replica_batch")
    if len(grad) % replicas:
        replicas = 1
    parts = grad.reshape(replicas, len(grad) // replicas, *grad.shape[1:])
    parts = parts.sum(1).astype(dtype)
    parts = constrain(parts, "replica_batch", "vocab", "table_embed")
    return constrain(parts.sum(0), "vocab", "table_embed")


def _zero_sums(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    zeros = constrain(jnp.zeros(len(weights), weights.dtype), "token_shards")
    return zeros, zeros


def _over_chunks(step: Any, carry: Any, arrays: tuple[jax.Array, ...], chunks: int) -> Any:
    """Scan `step` over chunks of each shard's tokens."""
    if chunks == 1:
        return step(carry, arrays)

    def split(x: jax.Array) -> jax.Array:
        shards, tokens = x.shape[:2]
        return x.reshape(shards, chunks, tokens // chunks, *x.shape[2:]).swapaxes(0, 1)

    carry, out = jax.lax.scan(step, carry, tuple(split(x) for x in arrays))
    if out is not None:
        out = out.swapaxes(0, 1)
        out = out.reshape(out.shape[0], out.shape[1] * out.shape[2], *out.shape[3:])
    return carry, out
