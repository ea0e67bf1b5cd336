"""Experts with a capacity: a fixed number of places for each, tokens beyond it dropped.

The capacity counts over a row of the batch (GShard's group, arXiv:2006.16668), and of the tokens of
a row the earlier ones come first. So what is dropped depends on the row alone: not on the mesh, nor
on the other rows of the batch, nor on later tokens.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from maxlm.kernels.activations import Hidden
from maxlm.kernels.experts.mlp import ExpertWeights, equal_mlp


def places_per_row(factor: float, tokens: int, visits: int, num_experts: int) -> int:
    """Places of one expert in a row: `factor` times its even share, at least one."""
    return max(1, math.ceil(factor * tokens * visits / num_experts))


def within_capacity(
    chosen: jax.Array, rank: jax.Array, *, places: int, num_experts: int
) -> jax.Array:
    """Which visits find a place.

    Args:
        chosen: `[B, T, k]` int32, the experts that a token visits; `num_experts` and more: none.
        rank: `[B, T]` int32, each token's turn in its row, wherever in the array it lies.
        places: of one expert in a row.
        num_experts: E.

    Returns:
        `[B, T, k]` bool.
    """
    turns = jnp.argsort(rank, axis=1)
    in_turn = jnp.take_along_axis(chosen, turns[..., None], 1)
    visited = _visited(in_turn, num_experts)  # [B, T, E]
    earlier = jnp.cumsum(visited, 1) - visited
    before = jnp.take_along_axis(earlier, jnp.minimum(in_turn, num_experts - 1), 2)
    kept = (before < places) & (in_turn < num_experts)
    return jnp.take_along_axis(kept, jnp.argsort(turns, axis=1)[..., None], 1)


def with_places(
    x: jax.Array,
    chosen: jax.Array,
    scores: jax.Array,
    weights: ExpertWeights,
    *,
    places: int,
    num_experts: int,
    hidden_of: Hidden,
    axis: tuple[str, ...] | None,
) -> jax.Array:
    """Each token's experts, weighted and added up, by places.

    Args:
        x: `[B, T, D]`; inside `shard_map` the device's own rows, or its part of them.
        chosen: `[B, T, k]` int32; `num_experts`: none, or no place.
        scores: `[B, T, k]` weight of each.
        weights: of the experts on this device.
        places: of one expert in a row.
        num_experts: E, of all devices.
        hidden_of: of the MLP, hidden width from gate and up.
        axis: over which the experts lie; None: they all are here.

    Returns:
        `[B, T, D]`.
    """
    batch, length, _ = x.shape
    places = min(places, length)  # a token visits an expert at most once
    visited = _visited(chosen, num_experts)
    number = jnp.cumsum(visited, 1) - visited  # [B, T, E], the place of a token at an expert
    place = jnp.take_along_axis(number, jnp.minimum(chosen, num_experts - 1), 2)
    goes = chosen < num_experts
    at = jnp.where(goes, chosen * places + place, num_experts * places)

    row = jnp.arange(batch)[:, None, None]
    token = jnp.broadcast_to(jnp.arange(length)[:, None], at.shape)
    holder = jnp.full((batch, num_experts * places + 1), length)
    holder = holder.at[row, at].set(token)[:, :-1]  # [B, E·places], the token in each place
    taken = (holder < length)[..., None]
    filled = jnp.where(taken, x[row[..., 0], jnp.minimum(holder, length - 1)], 0)

    rows = filled.reshape(batch, num_experts, places, -1).swapaxes(0, 1)
    out = _at_home(rows, weights, hidden_of, axis)
    out = out.swapaxes(0, 1).reshape(batch, num_experts * places, -1)
    by_visit = out[row, jnp.minimum(at, num_experts * places - 1)].astype(scores.dtype)
    summed = jnp.sum(jnp.where(goes[..., None], by_visit * scores[..., None], 0), axis=2)
    return summed.astype(x.dtype)


def _at_home(
    rows: jax.Array, weights: ExpertWeights, hidden_of: Hidden, axis: tuple[str, ...] | None
) -> jax.Array:
    """Run `rows [E, B, places, D]` on the devices of their experts."""
    if axis is not None:
        rows = jax.lax.all_to_all(rows, axis, 0, 1, tiled=True)
    flat = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    out = equal_mlp(flat, weights, hidden_of=hidden_of).reshape(rows.shape)
    if axis is not None:
        out = jax.lax.all_to_all(out, axis, 1, 0, tiled=True)
    return out


def _visited(chosen: jax.Array, num_experts: int) -> jax.Array:
    """`[B, T, k]` experts → `[B, T, E]` int32, 1 where a token visits one."""
    return jnp.sum(chosen[..., None] == jnp.arange(num_experts), axis=2, dtype=jnp.int32)
