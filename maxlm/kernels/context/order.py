"""The zigzag order of a row's tokens over devices, which gives a causal ring equal work everywhere.

A row over n devices is cut into 2n chunks; device i holds chunks i and 2n−1−i, one early in the row
(little to see) and one late. Loss, norms and projections treat tokens one by one, so only attention
has to know. The order is taken on entering the model and nowhere else: batches outside are in their
own order, and nobody has to remember which is which. It costs two transfers of a device's half per
array, 20 bytes a token of all five of a batch, where a layer's keys alone are hundreds.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maxlm.parallel.axes import LENGTH_AXES, partition_spec
from maxlm.parallel.mesh import check_length


def to_zigzag(tree: Any) -> Any:
    """Arrays `[B, T, …]` of tokens in their order → in zigzag order, over the mesh that is set.

    Raises:
        ParallelError: T does not divide into two chunks a device.
    """
    return jax.tree.map(lambda x: _moved(_to_zigzag, x), tree)


def from_zigzag(tree: Any) -> Any:
    """The inverse of `to_zigzag`."""
    return jax.tree.map(lambda x: _moved(_from_zigzag, x), tree)


def _moved(function: Any, array: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    check_length(array.shape[1], mesh, chunks=2)
    spec = partition_spec(("batch", "length", *["activation"] * (array.ndim - 2)))
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    mapped = jax.shard_map(
        function, in_specs=spec, out_specs=spec, axis_names=free, check_vma=False
    )
    with jax.named_scope("zigzag"):
        return mapped(array)


def _to_zigzag(local: jax.Array) -> jax.Array:
    # Device i has chunks 2i and 2i+1: one of each parity, as it will have again.
    even, odd = jnp.split(local, 2, axis=1)
    even = jax.lax.ppermute(even, LENGTH_AXES, _routes(0))
    odd = jax.lax.ppermute(odd, LENGTH_AXES, _routes(1))
    return _by_parity(even, odd)


def _from_zigzag(local: jax.Array) -> jax.Array:
    low, high = jnp.split(local, 2, axis=1)
    even, odd = jnp.split(_by_parity(low, high), 2, axis=1)
    even = jax.lax.ppermute(even, LENGTH_AXES, [(to, source) for source, to in _routes(0)])
    odd = jax.lax.ppermute(odd, LENGTH_AXES, [(to, source) for source, to in _routes(1)])
    return jnp.concatenate([even, odd], axis=1)


def _routes(parity: int) -> list[tuple[int, int]]:
    """From whom to whom the chunks of one parity go."""
    count = jax.lax.axis_size(LENGTH_AXES)
    chunks = range(parity, 2 * count, 2)
    return [(chunk // 2, min(chunk, 2 * count - 1 - chunk)) for chunk in chunks]


def _by_parity(first: jax.Array, second: jax.Array) -> jax.Array:
    """Both halves; the other way round on odd devices, whose low chunk is an odd one."""
    is_odd = jax.lax.axis_index(LENGTH_AXES) % 2 == 1
    halves = jnp.where(is_odd, second, first), jnp.where(is_odd, first, second)
    return jnp.concatenate(halves, axis=1)
