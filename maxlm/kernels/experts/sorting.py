"""Bringing the rows of each expert together, and back in order; both ways by gathers alone.

The gradient of a gather is a scatter with sums, which a TPU does slowly. Here each direction is the
other's gradient, because the order is a permutation whose inverse is known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sorted(NamedTuple):
    """Visits of tokens to experts, in the order of the experts.

    N tokens that visit k experts each make N·k visits, numbered token by token.
    """

    order: jax.Array  # [R], the visit of each row; visits to no expert come last
    place: jax.Array  # [N·k], the row of each visit; R and more: it has none
    sizes: jax.Array  # [E], rows of each expert


def sort_visits(chosen: jax.Array, num_experts: int, *, rows: int | None = None) -> Sorted:
    """Sort visits by expert.

    Args:
        chosen: `[N, k]` int32 experts; `num_experts` and more: none.
        num_experts: E.
        rows: R, at least the visits to an expert; None: all N·k.
    """
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
    # Sums of comparisons: `bincount` would be a scatter.
    sizes = jnp.sum(flat[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return Sorted(order[:rows], place, sizes)


@jax.custom_vjp
def spread(x: jax.Array, order: jax.Array, place: jax.Array) -> jax.Array:
    """Rows of visits: `x [N, D]` → `[R, D]`, a token once for each of its visits."""
    visits = place.shape[0] // x.shape[0]
    return x[order // visits]


def _spread_forward(x: jax.Array, order: jax.Array, place: jax.Array) -> tuple[jax.Array, Any]:
    return spread(x, order, place), (order, place, x.shape[0])


def _spread_backward(residuals: Any, dy: jax.Array) -> tuple[jax.Array, None, None]:
    order, place, tokens = residuals
    by_visit = collect(dy, order, place).reshape(tokens, -1, dy.shape[-1])
    return by_visit.sum(1), None, None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collect(rows: jax.Array, order: jax.Array, place: jax.Array) -> jax.Array:
    """Rows in the order of visits: `rows [R, D]` → `[N·k, D]`; zeros for visits without a row."""
    if rows.shape[0] == place.shape[0]:
        return rows[place]
    return jnp.where((place < rows.shape[0])[:, None], rows[place], 0)


def _collect_forward(rows: jax.Array, order: jax.Array, place: jax.Array) -> tuple[jax.Array, Any]:
    return collect(rows, order, place), order


def _collect_backward(order: jax.Array, dy: jax.Array) -> tuple[jax.Array, None, None]:
    return dy[order], None, None


collect.defvjp(_collect_forward, _collect_backward)


def weighted_sum(by_visit: jax.Array, scores: jax.Array) -> jax.Array:
    """Add up a token's experts: `[N·k, D]` by their scores `[N, k]` → `[N, D]`, in float32."""
    tokens, visits = scores.shape
    wide = by_visit.reshape(tokens, visits, -1).astype(scores.dtype)
    return jnp.sum(wide * scores[..., None], axis=1).astype(by_visit.dtype)
