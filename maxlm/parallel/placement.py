"""Which rows of a batch this process needs, by the mesh, how they get there, and where arrays lie.

Never by process index: where `tensor` spans processes, several of them need the same rows, and
sharding the data by index would silently feed them different ones.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from maxlm.parallel.axes import sharding


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Sorted indices of the batch rows that this process's devices hold."""
    place = sharding(mesh, ("batch",))
    indices = place.addressable_devices_indices_map((batch_size,)).values()
    rows = {row for index in indices if index for row in range(*index[0].indices(batch_size))}
    return np.array(sorted(rows), np.int64)


def place_batch(batch: Any, batch_size: int, rows: np.ndarray, mesh: Mesh) -> Any:
    """Put a host batch of this process's `rows` on the mesh as global arrays.

    Args:
        batch: a pytree of numpy arrays `[len(rows), T]`.
        batch_size: rows of the global batch.
        rows: what `local_rows` returned.
        mesh: the mesh.

    Returns:
        The pytree with `jax.Array`s `[batch_size, T]`, rows over the data axes.
    """
    place = sharding(mesh, ("batch", "length"))
    if place.is_fully_addressable:
        return jax.device_put(batch, place)  # of several processes it would compare the values
    position = {int(row): i for i, row in enumerate(rows)}

    def put(local: np.ndarray) -> jax.Array:
        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start = position[index[0].indices(batch_size)[0]]
            count = len(range(*index[0].indices(batch_size)))
            return local[start : start + count, *index[1:]]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), place, piece)

    return jax.tree.map(put, batch)


def on_mesh_of(arrays: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which the mesh that a pytree of arrays lies on is set, for what is called with it.

    Model code pins activations on the mesh that is set. Arrays without a mesh leave it as it is.
    """
    for array in jax.tree.leaves(arrays):
        place = getattr(array, "sharding", None)
        if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
            return jax.set_mesh(place.mesh)
    return contextlib.nullcontext()
