"""Rows to the devices that hold their experts and back, inside `shard_map`.

Two ways with equal results. `gather`: every device fetches all tokens of the expert axis, does its
own experts' part, and the parts are added up on the way back; it runs everywhere and is the
reference. `all_to_all`: every row travels only where it is needed, by `jax.lax.ragged_all_to_all`,
which a CPU does not have. Neither drops a token: buffers hold the worst case, in which every token
of the axis visits as many of one device's experts as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.experts.sorting import Sorted, combine, sort_visits, spread

# (number of copies -> rows [R, D] sorted by local expert, the weight of each [R, 1], rows of each expert)
# -> rows, weighted
GroupedMLP = Callable[
    [Callable[[int], tuple[jax.Array, ...]], jax.Array, jax.Array],
    jax.Array,
]


def on_one_device(
    x: jax.Array,
    chosen: jax.Array,
    scores: jax.Array,
    mlp: GroupedMLP,
    *,
    num_experts: int,
    rows: int | None = None,
) -> jax.Array:
    """Each token's experts, weighted and added up, where the device holds all that count.

    Args:
        x: `[N, D]` tokens.
        chosen: `[N, k]` int32 experts; `num_experts` and more: none that counts.
        scores: `[N, k]` weight of each.
        mlp: the experts.
        num_experts: E.
        rows: at least the visits that count; None: N·k.

    Returns:
        `[N, D]`.
    """
    visits = sort_visits(chosen, num_experts, rows=rows)
    out = mlp(partial(spread, x, visits), _in_order(scores, visits), visits.sizes)
    return combine(out, visits, x.shape[0])


def gather(
    x: jax.Array,
    chosen: jax.Array,
    scores: jax.Array,
    mlp: GroupedMLP,
    *,
    num_experts: int,
    axis: tuple[str, ...],
) -> jax.Array:
    """As `on_one_device`, the experts lying over `axis`: all-gather, local experts, reduce-scatter.

    `num_experts` counts those of all devices, in the order of the axis.
    """
    local = num_experts // jax.lax.axis_size(axis)
    x, chosen, scores = (
        jax.lax.all_gather(array, axis, tiled=True) for array in (x, chosen, scores)
    )
    x = checkpoint_name(x, "expert_rows")
    mine = chosen - jax.lax.axis_index(axis) * local
    mine = jnp.where((mine >= 0) & (mine < local), mine, local)
    rows = x.shape[0] * min(chosen.shape[1], local)
    part = on_one_device(x, mine, scores, mlp, num_experts=local, rows=rows)
    return jax.lax.psum_scatter(part, axis, tiled=True)


def all_to_all(
    x: jax.Array,
    chosen: jax.Array,
    scores: jax.Array,
    mlp: GroupedMLP,
    *,
    num_experts: int,
    axis: tuple[str, ...],
) -> jax.Array:
    """As `gather`, every row travelling only to its expert's device and back."""
    devices = jax.lax.axis_size(axis)
    local = num_experts // devices
    visits = sort_visits(chosen, num_experts)  # by expert, and so by device
    me = jax.lax.axis_index(axis)
    sent = jax.lax.all_gather(visits.sizes, axis).reshape(devices, devices, local)
    route = _route(sent.sum(2), me)
    most = devices * x.shape[0] * min(chosen.shape[1], local)
    (rows,), weights = spread(x, visits), _in_order(scores, visits)
    received = checkpoint_name(_deliver(rows, route, most, axis), "expert_rows")
    weights = _deliver(weights, route, most, axis)

    # What came is sorted by sender and then by expert.
    by_sender = sent[:, me].reshape(-1)  # [senders · local experts]
    run = jnp.searchsorted(jnp.cumsum(by_sender), jnp.arange(most), side="right")
    expert = jnp.where(run < devices * local, run % local, local)
    inner = sort_visits(expert[:, None], local)
    (weights,) = spread(weights, inner)
    out = mlp(partial(spread, received, inner), weights, inner.sizes)
    out = combine(out, inner, most)
    back = _deliver(out, route.back, rows.shape[0], axis)
    return combine(back, visits, x.shape[0])


def _in_order(scores: jax.Array, visits: Sorted) -> jax.Array:
    """The weight of each row: `[N, k]` → `[R, 1]`."""
    (weights,) = spread(scores.reshape(-1, 1), visits)
    return weights


class _Route(NamedTuple):
    """What goes where, per device of the axis."""

    starts: jax.Array  # where the rows for it begin on this side
    sizes: jax.Array  # how many there are
    landings: jax.Array  # where they begin in what it receives
    arrivals: jax.Array  # where its rows begin in what this device receives
    arriving: jax.Array  # how many there are
    origins: jax.Array  # where they begin on its side

    @property
    def back(self) -> _Route:
        """The way by which everything returns to where it was."""
        return _Route(*self[3:], *self[:3])


def _route(counts: jax.Array, me: jax.Array) -> _Route:
    """The route of `counts [senders, receivers]` rows, as the device `me` of the axis sees it."""
    by_receiver = jnp.cumsum(counts, 1) - counts  # where rows for a receiver begin at a sender
    by_sender = jnp.cumsum(counts, 0) - counts  # where a sender's rows begin at a receiver
    mine = (by_receiver[me], counts[me], by_sender[me])
    theirs = (by_sender[:, me], counts[:, me], by_receiver[:, me])
    return _Route(*mine, *theirs)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _deliver(rows: jax.Array, route: _Route, size: int, axis: tuple[str, ...]) -> jax.Array:
    """Send rows along a route; what arrives, `[size, D]`, zeros where nothing does."""
    empty = jnp.zeros((size, *rows.shape[1:]), rows.dtype)
    return jax.lax.ragged_all_to_all(
        rows,
        empty,
        route.starts,
        route.sizes,
        route.landings,
        route.arriving,
        axis_name=axis,
    )


def _deliver_forward(
    rows: jax.Array, route: _Route, size: int, axis: tuple[str, ...]
) -> tuple[jax.Array, Any]:
    return _deliver(rows, route, size, axis), (route, rows.shape[0])


def _deliver_backward(
    size: int, axis: tuple[str, ...], residuals: Any, dy: jax.Array
) -> tuple[jax.Array, None]:
    # Every row has one place on the other side: the gradient takes the same way back.
    route, rows = residuals
    return _deliver(dy, route.back, rows, axis), None


_deliver.defvjp(_deliver_forward, _deliver_backward)
