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

from functools import partial
from typing import Any

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
from maxlm.parallel.axes import LENGTH_AXES

Pair = jax.Array  # four int32: offset and start of the queries' part, then of the keys'
Residuals = tuple[jax.Array, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
    features: Features, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> jax.Array:
    """Causal attention over a ring of devices; called inside `shard_map`.

    Args:
        features: window and soft-cap.
        query: this device's, `[B, T, K, G, C]`, scaled.
        key: this device's, `[B, T, K, C]`.
        value: `[B, T, K, C]`.
        segments: `[B, T]` int32.

    Returns:
        `[B, T, K, G, C]`.
    """
    return _forward(features, query, key, value, segments)[0]


def _forward(
    features: Features, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> tuple[jax.Array, Residuals]:
    out, log_sum = one_mapped(partial(_attended, features))(query, key, value, segments)
    out = checkpoint_name(out, "attention_out")
    log_sum = checkpoint_name(log_sum, "attention_lse")
    return out, (query, key, value, segments, out, log_sum)


def _attended(
    features: Features, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The output and the log-sum-exp of the scores."""
    queries = Tokens((query,), segments)

    def step(softmax: Any, keys: Tokens, pairs: list[Pair], *, own: bool = False) -> Any:
        return _over_pairs(add_keys, softmax, queries, keys, pairs, features)

    softmax = _around(step, empty_softmax(query), Tokens((key, value), segments))
    return softmax.finish(query.dtype)


def _backward(
    features: Features, residuals: Residuals, d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    return (*one_mapped(partial(_gradients, features))(*residuals, d_out), None)


ring_attention.defvjp(_forward, _backward)


def _gradients(
    features: Features,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    out: jax.Array,
    log_sum: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, ...]:
    wide = wide_dtype(query)
    row_sums = (d_out.astype(wide) * out.astype(wide)).sum(-1)  # [B, T, K, G]
    queries = Tokens((query, d_out, log_sum, row_sums), segments)
    key_zeros = jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)

    def step(carry: Any, keys: Tokens, pairs: list[Pair], *, own: bool = False) -> Any:
        d_query, travelling = carry
        # The sums of these keys come from the device that had them before, during the work here.
        received = travelling if own else jax.tree.map(_pass_on, travelling)
        gradients = Gradients(d_query, *key_zeros)
        gradients = _over_pairs(add_gradients, gradients, queries, keys, pairs, features)
        d_key, d_value = jax.tree.map(jnp.add, received, (gradients.key, gradients.value))
        return gradients.query, (d_key, d_value)

    start = jnp.zeros(query.shape, wide), key_zeros
    d_query, travelling = _around(step, start, Tokens((key, value), segments))
    # After the last step a device holds the sums of its neighbour's keys.
    d_key, d_value = jax.tree.map(_pass_on, travelling)
    return tuple(g.astype(query.dtype) for g in (d_query, d_key, d_value))


def _around(step: Any, carry: Any, keys: Tokens) -> Any:
    """Run `step(carry, keys, pairs, own=…)` with the keys of every device, one's own first."""
    count = jax.lax.axis_size(LENGTH_AXES)
    own = jax.lax.axis_index(LENGTH_AXES)
    length = keys.segments.shape[1] // 2

    def pair(other: Scalar, query_high: Scalar, key_high: Scalar) -> Pair:
        places = []
        for device, high in ((own, query_high), (other, key_high)):
            index = jnp.where(high, 2 * count - 1 - device, device)
            places += [jnp.where(high, length, 0), index * length]
        return jnp.stack(places).astype(jnp.int32)

    def pairs(distance: Scalar) -> list[Pair]:
        other = (own - distance) % count
        return [pair(other, True, False), pair(other, other > own, other > own)]

    # Every transfer is asked for before the work that it goes on beside.
    following = jax.tree.map(_pass_on, keys)
    both = [pair(own, False, False), pair(own, True, True)]
    carry = step(carry, keys, [*both, pair(own, True, False)], own=True)

    def turn(state: Any, distance: Scalar) -> Any:
        carry, keys = state
        following = jax.tree.map(_pass_on, keys)
        return (step(carry, keys, pairs(distance)), following), None

    if count > 2:
        (carry, following), _ = jax.lax.scan(turn, (carry, following), jnp.arange(1, count - 1))
    return step(carry, following, pairs(count - 1)) if count > 1 else carry


def _over_pairs(
    add: Any, carry: Any, queries: Tokens, keys: Tokens, pairs: list[Pair], features: Features
) -> Any:
    """Run `add` on pairs of chunks; a loop, because one body compiles faster than several."""
    length = keys.segments.shape[1] // 2

    def one(carry: Any, pair: Pair) -> Any:
        query_part, key_part = Part(pair[0], pair[1], length), Part(pair[2], pair[3], length)
        return add(carry, queries, keys, query_part, key_part, features), None

    return jax.lax.scan(one, carry, jnp.stack(pairs))[0]


def _pass_on(array: jax.Array) -> jax.Array:
    count = jax.lax.axis_size(LENGTH_AXES)
    return jax.lax.ppermute(array, LENGTH_AXES, [(i, (i + 1) % count) for i in range(count)])
