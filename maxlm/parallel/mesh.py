"""The device mesh: the product of the axes in `config/mesh_axes.py`, at most one of size -1."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh

from maxlm.config.mesh_axes import MESH_AXES, product_of
from maxlm.config.schema import ParallelConfig
from maxlm.errors import ParallelError
from maxlm.parallel.axes import TABLE, shard_count


def make_mesh(parallel: ParallelConfig, devices: list[Any] | None = None) -> Mesh:
    """Lay devices out as the config's mesh.

    Raises:
        ParallelError: the sizes do not multiply to the number of devices, or their links and
            slices do not allow them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(parallel, len(devices))
    auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return Mesh(arrange(devices, sizes), MESH_AXES, axis_types=auto)


def arrange(devices: list[Any], sizes: tuple[int, ...]) -> np.ndarray:
    """Order devices along the hardware's links, slice by slice.

    An axis takes whole links of a TPU's torus where the sizes allow, and shares one otherwise
    (`jax.make_mesh` refuses to share but on v5e). `replica` alone goes across slices, because it
    sends least: gradients, once a step.

    Args:
        devices: of one or several slices.
        sizes: of the mesh axes, which multiply to the number of devices.

    Returns:
        Devices, of shape `sizes`.

    Raises:
        ParallelError: the links or slices do not allow these sizes.
    """
    if devices[0].platform != "tpu":
        # A switch between devices: only the order of the machines matters.
        ordered = sorted(devices, key=lambda d: (getattr(d, "slice_index", None) or 0, d.id))
        return np.asarray(ordered).reshape(sizes)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    described = product_of(dict(zip(MESH_AXES, sizes, strict=True)))
    replica, *inner = sizes
    if replica % slices:
        raise ParallelError(
            f"mesh {described}: replica {replica} does not divide by the {slices} slices, and no "
            f"other axis may span slices; set parallel.replica to a multiple of {slices}"
        )
    try:
        if slices > 1:
            return mesh_utils.create_hybrid_device_mesh(
                (replica // slices, *inner),
                (slices, *(1 for _ in inner)),
                devices,
                allow_split_physical_axes=True,
            )
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise ParallelError(
            f"mesh {described} cannot be laid over these {len(devices)} devices "
            f"({devices[0].device_kind}, {slices} slice{'s' if slices > 1 else ''}): {error}; "
            "give the axes sizes that are products of the slice's sides"
        ) from error


def mesh_sizes(parallel: ParallelConfig, num_devices: int) -> tuple[int, ...]:
    """Sizes of the axes, -1 filled in. Raises ParallelError when they do not fit the devices."""
    sizes = {axis: getattr(parallel, axis) for axis in MESH_AXES}
    described = product_of(sizes)
    if 0 in sizes.values():
        raise ParallelError(f"mesh {described}: an axis cannot have size 0 (1 leaves it out)")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ParallelError(
            f"mesh {described}: {' and '.join(free)} are both -1; only one axis can take the rest"
        )
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free:
        if num_devices % fixed:
            raise ParallelError(
                f"mesh {described}: {num_devices} devices do not divide by {fixed}; "
                f"the fixed axes must multiply to one of {_divisors(num_devices)}"
            )
        sizes[free[0]] = num_devices // fixed
    elif fixed != num_devices:
        raise ParallelError(
            f"mesh {described} needs {fixed} devices, but there are {num_devices}; "
            "set one axis to -1 to take what is left"
        )
    return tuple(sizes[axis] for axis in MESH_AXES)


def data_shards(mesh: Mesh) -> int:
    """Over how many shards the batch is split."""
    return shard_count(mesh, TABLE["batch"])


def batch_multiple(mesh: Mesh) -> int:
    """What batches are multiples of: every stage of a pipeline needs a microbatch of each shard."""
    return shard_count(mesh, TABLE["rows"])


def check_batch(batch_size: int, mesh: Mesh, *, accumulation: int = 1) -> None:
    """Raise ParallelError when a global batch does not divide over the mesh."""
    shards = data_shards(mesh) * accumulation
    if batch_size % shards:
        below = batch_size // shards * shards
        nearest = f"{below} and {below + shards}" if below else f"{shards}"
        product = product_of(mesh.shape, axes=TABLE["batch"])
        micro = f" × accumulation {accumulation}" if accumulation > 1 else ""
        raise ParallelError(
            f"global batch {batch_size} does not divide over {shards} shards "
            f"({product}{micro}): nearest are {nearest}"
        )


def check_length(length: int, mesh: Mesh | AbstractMesh, *, chunks: int = 1) -> None:
    """Raise ParallelError when rows do not divide over the context axis.

    Args:
        length: tokens of a row.
        mesh: the mesh.
        chunks: equal parts of a row that every device holds (ring attention: 2).
    """
    shards = shard_count(mesh, TABLE["length"])
    parts = shards * chunks if shards > 1 else 1
    if length % parts:
        below = length // parts * parts
        nearest = f"{below} and {below + parts}" if below else f"{parts}"
        product = product_of(mesh.shape, axes=TABLE["length"])
        each = f" × {chunks} chunks a device, which ring attention balances" if chunks > 1 else ""
        raise ParallelError(
            f"length {length} does not divide by {parts} ({product}{each}): nearest are {nearest}"
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
