"""The one table from logical axes to mesh axes, and what is derived from it.

Model code names logical axes only; where an array lies is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.mesh_axes import DATA_AXES, ROW_AXES, product_of
from maxlm.errors import ParallelError

# Parameters: `fsdp`, and the axes that would else hold copies, shard the residual width; `tensor`
# shards the width inside a sublayer. Layers lie over `stage`; the tables, which are no layer's, have
# their width over it (`table_embed`).
# Activations: `batch` over all data axes (an `expert` shard has rows of its own outside of the
# experts), tokens of a row over `context`; inside a sublayer, heads and mlp over `tensor`. Outside of
# the layers, where no stage has anything of its own to do, they share the rows (`rows`).
TABLE: dict[str, tuple[str, ...]] = {
    "batch": DATA_AXES,
    "rows": ROW_AXES,
    "length": ("context",),
    "token_shards": (*ROW_AXES, "context"),  # tokens by the device that holds them …
    "tokens": (),  # … and those of one device
    "embed": ("fsdp", "expert", "context"),
    "table_embed": ("fsdp", "expert", "stage", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": ("stage",),
    "stages": ("stage",),  # of a pipeline: what each of them works on …
    "groups": (),  # … and the groups of microbatches that wait
    "vector": (),  # norm scales and biases: too small to be worth a collective
    "position": (),
    "activation": (),  # the residual width of activations
    # On the way from a sharded table's rows to the batch's (maxlm/model/lookup.py).
    "replica_batch": ("replica",),
    "data_embed": ("fsdp", "expert", "stage"),
}

# Over what the tokens of a row lie, for collectives inside `shard_map`.
LENGTH_AXES = TABLE["length"]


def partition_spec(axes: tuple[str, ...]) -> P:
    """Mesh axes of an array whose dims have these logical axes."""
    return P(*(TABLE[axis] or None for axis in axes))


def sharding(mesh: Mesh, axes: tuple[str, ...]) -> NamedSharding:
    """Sharding on `mesh` of an array whose dims have these logical axes."""
    return NamedSharding(mesh, partition_spec(axes))


def check_divides(name: str, shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> None:
    """Raise ParallelError when a dim does not divide over its mesh axes, showing the arithmetic."""
    for size, axis in zip(shape, axes, strict=True):
        mesh_axes = TABLE[axis]
        shards = shard_count(mesh, mesh_axes)
        if size % shards:
            product = product_of(mesh.shape, axes=mesh_axes)
            fitting = [n for n in range(1, shards + 1) if size % n == 0]
            raise ParallelError(
                f"{name}: its {axis} dim of {size} does not divide over {shards} shards "
                f"({product}); use at most {max(fitting)} shards on {' × '.join(mesh_axes)}"
            )


def shard_count(mesh: Mesh | AbstractMesh, mesh_axes: tuple[str, ...]) -> int:
    """Product of the sizes of mesh axes."""
    count = 1
    for axis in mesh_axes:
        count *= mesh.shape[axis]
    return count


def mesh_shards(axis: str) -> int:
    """Over how many devices a logical axis is split on the mesh that is set.

    1 without a mesh, and inside `sum_over_replicas`, where all is a replica's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else shard_count(mesh, TABLE[axis])


def mesh_axis(axis: str) -> str | None:
    """The mesh axis of a logical axis that has one, for `vmap`; None where no mesh is set."""
    (name,) = TABLE[axis]
    return None if jax.sharding.get_abstract_mesh().empty else name


def batch_shards(batch_size: int) -> int:
    """Over how many devices rows inside of the layers are split; 1 where they do not divide."""
    return _shards("batch", batch_size)


def row_shards(batch_size: int) -> int:
    """Over how many devices rows outside of the layers are split; 1 where they do not divide."""
    return _shards("rows", batch_size)


def length_shards(length: int) -> int:
    """Over how many devices the tokens of a row are split; 1 where they do not divide."""
    return _shards("length", length)


def _shards(axis: str, size: int) -> int:
    shards = mesh_shards(axis)
    return shards if size % shards == 0 else 1


def constrain(array: jax.Array, *axes: str) -> jax.Array:
    """Pin an activation's sharding by logical axes; a no-op on one device and on a replica of its own.

    Without it the compiler may keep whole activations on every device: the temporaries of a 0.9B
    model on 64 v5p chips were 71 to 96 GB.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes))


def sum_over_replicas(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`function(params, batch)` on each replica's rows, its results added over the replicas once.

    Left to the compiler, gradients are added up matrix by matrix as they come about, once in every
    micro-batch; here every array is once a step, the stacked layers in one piece. Only on a mesh of
    replicas alone: where `fsdp` or `tensor` shard the parameters too, XLA's partitioner aborts on
    the embedding's gather in a partly manual mesh (jax 0.10.2), and the compiler does it all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.shape["replica"] != mesh.size:
        return function

    def summed(params: Any, batch: Any) -> Any:
        return jax.lax.psum(function(params, batch), "replica")

    # That sums are equal everywhere is true by construction, which the check cannot see.
    return jax.shard_map(summed, in_specs=(P(), P("replica")), out_specs=P(), check_vma=False)
