"""Ring attention (arXiv:2310.01889): keys and values travel around the devices that share a row.

In and out: each device's own tokens of a row, in the zigzag order of `order.py`. At every step a
device works on the keys it has while the next ones are on their way, so that with enough tokens the
transfer costs no time. No device ever holds more than two devices' keys and values.

Device `i` of n holds chunks `i` ("low") and `2n−1−i` ("high") of the row's 2n. With the keys of device
`j` it does: its high queries with low keys, always; low with low where j < i, high with high where
j > i; low queries never see high keys. So each step costs every device two whole pairs of chunks, and
the step with its own keys one and two halves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.attention.blocks import Keys, Queries, cut_keys, cut_queries, even_block
from maxlm.kernels.attention.online_softmax import (
    Gradients,
    Softmax,
    add_gradients,
    add_keys,
    cut_rows,
    finish,
    finish_keys,
    finish_queries,
    no_gradients,
    no_key_gradients,
    no_keys,
)
from maxlm.kernels.attention.sinks import add_sinks, sink_gradient
from maxlm.kernels.attention.turns import expected_turns
from maxlm.kernels.one_mapped import one_mapped
from maxlm.parallel.axes import LENGTH_AXES

RUNS = 2  # a device's tokens: its low chunk and its high one


def ring_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Causal attention over a ring of devices; called inside `shard_map`.

    Kept for the backward pass and named for rematerialisation: the output (`attention_out`) and the
    log-sum-exp (`attention_lse`, `[B, H, T]`).

    Args:
        query: this device's, `[B, T, H, C]`.
        key: this device's, `[B, T, K, C]`.
        value: `[B, T, K, V]`.
        segment_ids: `[B, T]` int32.
        sinks: `[H]`, equal on all devices, or None.
        window: as in `context_attention`.
        logit_cap: as in `context_attention`.

    Returns:
        `[B, T, H, V]`.
    """
    return _attention(window, logit_cap, query, key, value, segment_ids, sinks)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None,
) -> jax.Array:
    return _forward(window, logit_cap, query, key, value, segment_ids, sinks)[0]


def _forward(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    # Rounded once: where sinks follow, after them.
    dtype = query.dtype if sinks is None else jnp.promote_types(query.dtype, jnp.float32)
    attended = one_mapped(partial(_attended, window, logit_cap, dtype))
    out, lse = attended(query, key, value, segment_ids)
    if sinks is not None:
        out, lse = add_sinks(out, lse, sinks)
    out = checkpoint_name(out.astype(query.dtype), "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (query, key, value, segment_ids, sinks, out, lse)


def _attended(
    window: int | None,
    logit_cap: float | None,
    dtype: jnp.dtype,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The output, in `dtype`, and the log-sum-exp of the scores."""
    queries, keys = _own(query, key, value, segment_ids)
    features = _features(keys, window, logit_cap)

    def step(softmax: Softmax, keys: Keys) -> Softmax:
        return add_keys(softmax, queries, keys, **features)

    softmax = around(step, no_keys(queries, value.shape[-1]), keys)
    return finish(softmax, query.shape[1], query.shape[2], dtype)


def _backward(
    window: int | None,
    logit_cap: float | None,
    residuals: tuple,
    d_out: jax.Array,
) -> tuple[jax.Array | None, ...]:
    query, key, value, segment_ids, sinks, out, lse = residuals
    gradients = one_mapped(partial(_gradients, window, logit_cap))
    grads = gradients(query, key, value, segment_ids, out, lse, d_out)
    d_sinks = None if sinks is None else sink_gradient(out, lse, d_out, sinks)
    return (*grads, None, d_sinks)


_attention.defvjp(_forward, _backward)


def _gradients(
    window: int | None,
    logit_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, ...]:
    queries, keys = _own(query, key, value, segment_ids)
    rows = cut_rows(queries, out, lse, d_out)
    none = no_gradients(queries, *no_key_gradients(keys))
    features = _features(keys, window, logit_cap)

    def step(before: Gradients | None, keys: Keys) -> Gradients:
        if before is None:  # one's own keys, the first
            return add_gradients(none, queries, keys, rows, **features)
        # The sums of these keys come from the device that had them before, during the work here.
        received = _pass_on((before.key, before.value))
        start = none._replace(query=before.query)
        d_query, *added = add_gradients(start, queries, keys, rows, **features)
        return Gradients(d_query, *jax.tree.map(jnp.add, received, tuple(added)))

    d_query, d_key, d_value = around(step, None, keys)
    # After the last step a device holds the sums of its neighbour's keys.
    d_key, d_value = _pass_on((d_key, d_value))
    d_key, d_value = finish_keys(d_key, d_value, key.shape[1])
    d_query = finish_queries(d_query, length=query.shape[1], heads=query.shape[2])
    return tuple(g.astype(query.dtype) for g in (d_query, d_key, d_value))


def _features(keys: Keys, window: int | None, logit_cap: float | None) -> dict[str, Any]:
    devices = jax.lax.axis_size(LENGTH_AXES)
    count, size = keys.token_index.shape
    turns = expected_turns(count, size, window, devices=devices)
    return {"window": window, "logit_cap": logit_cap, "turns": turns}


def _own(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> tuple[Queries, Keys]:
    """A device's tokens in blocks, with the places in the row that they have by `order.py`."""
    device = jax.lax.axis_index(LENGTH_AXES)
    chunk = query.shape[1] // RUNS
    starts = jnp.stack([device, 2 * jax.lax.axis_size(LENGTH_AXES) - 1 - device]) * chunk
    index = (starts[:, None] + jnp.arange(chunk)).reshape(-1).astype(jnp.int32)
    size = even_block(query.shape[1], RUNS)
    queries = cut_queries(query, key.shape[2], index, segment_ids, size)
    return queries, cut_keys(key, value, index, segment_ids, size)


def around(step: Callable[[Any, Keys], Any], carry: Any, keys: Keys) -> Any:
    """Run `step(carry, keys)` with the keys of every device, one's own first."""
    count = jax.lax.axis_size(LENGTH_AXES)
    if count == 1:
        return step(carry, keys)
    # Every transfer is asked for before the work that it goes on beside.
    following = _pass_on(keys)
    carry = step(carry, keys)

    def turn(state: Any, _: None) -> Any:
        carry, keys = state
        following = _pass_on(keys)
        return (step(carry, keys), following), None

    if count > 2:
        (carry, following), _ = jax.lax.scan(turn, (carry, following), length=count - 2)
    return step(carry, following)


def _pass_on(tree: Any) -> Any:
    """Arrays of the device before this one."""
    count = jax.lax.axis_size(LENGTH_AXES)
    routes = [(i, (i + 1) % count) for i in range(count)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, LENGTH_AXES, routes), tree)
