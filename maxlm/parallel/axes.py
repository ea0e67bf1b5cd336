"""The one table from logical axes to mesh axes, and what is derived from it.

Model code names logical axes only; where an array lies is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),  # `embed` of a matrix that `expert` shards already
    # What goes into a map out of a latent lies as `embed` does, what comes out of one into it does not.
    "latent": ("fsdp", "expert", "context"),
    "latent_out": (),
    "router": (),  # the experts as outputs of the router, whose every token needs them all
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
    if is_one_piece():
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes))


def over_shards(
    function: Callable[..., Any],
    in_axes: Sequence[tuple[str | None, ...]],
    out_axes: tuple[str | None, ...],
) -> Callable[..., Any]:
    """`function` on each device's shards of its arrays, which a kernel outside of XLA needs.

    Args:
        function: of arrays, to one array; it communicates with no other device.
        in_axes: logical axes of each array's dims; None: the dim is whole on every device.
        out_axes: those of the result.

    Returns:
        A function of the whole arrays. A batch that does not divide over its mesh axes is whole on
        every device. Without a mesh, on one device, and where all axes are in the hands of a
        `jax.shard_map` around this one, it is `function` itself.

    Raises:
        ParallelError: when called, another dim does not divide over its mesh axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [a for a in mesh.axis_names if a not in mesh.manual_axes and mesh.shape[a] > 1]
    if not free:
        return function

    def mapped(*arrays: jax.Array) -> Any:
        whole = set()
        for array, axes in zip(arrays, in_axes, strict=True):
            for size, axis in zip(array.shape, axes, strict=True):
                shards = shard_count(mesh, _mesh_axes(axis, free))
                if size % shards == 0:
                    continue
                if axis != "batch":
                    raise ParallelError(
                        f"a {axis} dim of {size} does not divide over {shards} shards "
                        f"({product_of(mesh.shape, axes=_mesh_axes(axis, free))})"
                    )
                whole.add(axis)

        def spec(axes: tuple[str | None, ...]) -> P:
            return P(*(_mesh_axes(None if a in whole else a, free) or None for a in axes))

        return jax.shard_map(
            function,
            in_specs=tuple(spec(axes) for axes in in_axes),
            out_specs=spec(out_axes),
            axis_names={a for a in mesh.axis_names if a not in mesh.manual_axes},
            check_vma=False,  # a kernel's outputs say nothing about the axes along which they vary
        )(*arrays)

    return mapped


def _mesh_axes(axis: str | None, among: list[str]) -> tuple[str, ...]:
    return () if axis is None else tuple(a for a in TABLE[axis] if a in among)


def is_one_piece() -> bool:
    """Whether arrays are as a device sees them: on one device, or on a replica of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.empty or mesh.size == 1 or mesh.manual_axes)


def over_replicas(sums: Any) -> Any:
    """Sums that a loss needs of the whole batch: added over replicas inside `sum_over_replicas`.

    They are constants to the gradient.
    """
    sums = jax.lax.stop_gradient(sums)
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.psum(sums, "replica") if "replica" in mesh.manual_axes else sums


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
