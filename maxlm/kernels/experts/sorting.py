"""Bringing the rows of each expert together, and adding up what returns; both ways by gathers alone.

The gradient of a gather is a scatter with sums, which a TPU does slowly. Here each direction is the
other's gradient, because the order is a permutation whose inverse is known.
"""

from __future__ import annotations

from functools import partial
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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def spread(x: jax.Array, visits: Sorted, copies: int = 1) -> tuple[jax.Array, ...]:
    """Rows of visits: `x [N, D]` → `[R, D]`, a token once for each of its visits.

    There are as many equal results as maps that read them: their gradients are then added up while they are
    gathered, and not in a pass of its own over all rows.
    """
    rows = x[visits.order // (visits.place.shape[0] // x.shape[0])]
    return (rows,) * copies


def _spread_forward(x: jax.Array, visits: Sorted, copies: int) -> tuple[tuple[jax.Array, ...], Any]:
    return spread(x, visits, copies), (visits, x.shape[0])


def _spread_backward(
    copies: int, residuals: Any, dy: tuple[jax.Array, ...]
) -> tuple[jax.Array, None]:
    return _combined(dy, *residuals), None


spread.defvjp(_spread_forward, _spread_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def combine(rows: jax.Array, visits: Sorted, tokens: int) -> jax.Array:
    """The sum of each token's rows: `rows [R, D]` → `[N, D]`, in float32 or wider.

    Rows past the last expert's may hold anything, NaN included: nothing reads them but this.
    """
    return _combined((rows,), visits, tokens)


def _combine_forward(rows: jax.Array, visits: Sorted, tokens: int) -> tuple[jax.Array, Any]:
    return combine(rows, visits, tokens), visits


def _combine_backward(tokens: int, visits: Sorted, dy: jax.Array) -> tuple[jax.Array, None]:
    return spread(dy, visits)[0], None


combine.defvjp(_combine_forward, _combine_backward)


def _combined(each: tuple[jax.Array, ...], visits: Sorted, tokens: int) -> jax.Array:
    has_row = (visits.place < visits.sizes.sum()).reshape(tokens, -1, 1)
    wide = jnp.promote_types(each[0].dtype, jnp.float32)

    def by_token(rows: jax.Array) -> jax.Array:
        return rows[visits.place].reshape(*has_row.shape[:2], -1).astype(wide)

    total = sum(map(by_token, each[1:]), by_token(each[0]))
    return jnp.sum(jnp.where(has_row, total, 0), axis=1).astype(each[0].dtype)
