"""A small train state in the shapes that matter: stacked, bfloat16, scalar, empty, boolean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SPECS = {
    "params.embedding.table": PartitionSpec("fsdp", "tensor"),
    "params.blocks.mlp.kernel": PartitionSpec(None, "fsdp", "tensor"),
    "params.blocks.norm.scale": PartitionSpec(None, None),
    "optimizer.mu.blocks.mlp.kernel": PartitionSpec(None, "tensor", "fsdp"),
    "optimizer.mask": PartitionSpec("fsdp"),
    "optimizer.count": PartitionSpec(),
    "variables.empty": PartitionSpec(),
}


def make_mesh(fsdp: int, tensor: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: fsdp * tensor]).reshape(fsdp, tensor)
    return jax.sharding.Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def host_state(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "params.embedding.table": rng.standard_normal((256, 64)).astype(np.float32),
        "params.blocks.mlp.kernel": rng.standard_normal((3, 16, 32)).astype(np.float32),
        "params.blocks.norm.scale": rng.standard_normal((3, 16)).astype(np.float32),
        "optimizer.mu.blocks.mlp.kernel": rng.standard_normal((3, 16, 32)).astype(jnp.bfloat16),
        "optimizer.mask": rng.integers(0, 2, 64).astype(bool),
        "optimizer.count": np.int32(rng.integers(1, 1000)),
        "variables.empty": np.zeros((0, 4), np.float32),
    }


def place(state: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    return {
        name: jax.make_array_from_callback(
            np.shape(value), NamedSharding(mesh, SPECS[name]), lambda i, v=value: np.asarray(v)[i]
        )
        for name, value in state.items()
    }


def targets(mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(
            np.shape(value), value.dtype, sharding=NamedSharding(mesh, SPECS[name])
        )
        for name, value in host_state().items()
    }


def assert_same(arrays: dict[str, jax.Array], state: dict[str, np.ndarray]) -> None:
    assert arrays.keys() == state.keys()
    for name, value in state.items():
        found = np.asarray(arrays[name])
        assert found.dtype == value.dtype and found.shape == np.shape(value), name
        assert found.tobytes() == np.asarray(value).tobytes(), name
