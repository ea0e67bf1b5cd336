from dataclasses import dataclass
from itertools import product

import jax
import numpy as np
import pytest

from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.errors import ParallelError
from maxlm.model.definition import define
from maxlm.parallel.mesh import arrange, check_batch, make_mesh, mesh_sizes
from maxlm.parallel.placement import local_rows, place_batch


def test_one_axis_takes_what_is_left():
    assert mesh_sizes(ParallelConfig(replica=2, fsdp=-1, tensor=2), 8) == (2, 1, 2, 1, 1, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"replica": 3, "fsdp": -1}, r"8 devices do not divide by 3; .* one of \[1, 2, 4, 8\]"),
        ({"fsdp": 4, "tensor": 4}, "needs 16 devices, but there are 8"),
        ({"fsdp": -1, "tensor": -1}, "fsdp and tensor are both -1"),
        ({"fsdp": 0}, "cannot have size 0"),
    ],
)
def test_impossible_meshes_show_the_arithmetic(sizes, message):
    with pytest.raises(ParallelError, match=message):
        mesh_sizes(ParallelConfig(**sizes), 8)


def test_a_batch_that_does_not_divide_names_the_nearest_that_do():
    mesh = make_mesh(ParallelConfig(replica=2, fsdp=4))
    check_batch(512, mesh)
    message = r"batch 510 does not divide over 8 shards \(replica 2 × fsdp 4\): .* 504 and 512"
    with pytest.raises(ParallelError, match=message):
        check_batch(510, mesh)


def test_a_parameter_that_does_not_divide_says_which_dim():
    model = define(
        ModelConfig(
            vocab_size=100,
            num_layers=1,
            embed_dim=36,
            num_heads=6,
            num_kv_heads=3,
            head_dim=6,
            mlp_dim=64,
        )
    )
    mesh = make_mesh(ParallelConfig(fsdp=4, tensor=2))
    with pytest.raises(ParallelError, match=r"key.kernel: its kv_heads dim of 3 .* over 2 shards"):
        model.shardings(mesh)


def test_every_row_is_placed_once_per_data_shard_and_unchanged():
    mesh = make_mesh(ParallelConfig(fsdp=4, tensor=2))
    rows = local_rows(8, mesh)
    np.testing.assert_array_equal(rows, np.arange(8))
    batch = np.arange(8 * 3).reshape(8, 3)
    placed = place_batch(batch, 8, rows, mesh)
    np.testing.assert_array_equal(placed, batch)
    assert placed.sharding.shard_shape(placed.shape) == (2, 3)


def test_parameters_are_initialised_in_shards_with_the_same_values_on_any_mesh():
    config = ModelConfig(
        vocab_size=128,
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        mlp_dim=64,
    )
    model = define(config)
    whole = model.init(0, make_mesh(ParallelConfig(), jax.devices()[:1]))
    shards = model.init(0, make_mesh(ParallelConfig(fsdp=4, tensor=2)))
    kernel = shards["segments.0.blocks.0.mlp.up.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 32)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, shards[name])


@dataclass(frozen=True)
class Chip:
    """What a mesh is made by: a device of a pod that is not here."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"


def pod(kind: str, *sides: int, slices: int = 1) -> list[Chip]:
    places = list(product(*(range(side) for side in reversed(sides))))  # x runs fastest
    return [
        Chip(s * len(places) + i, place[::-1], kind, slice_index=s)
        for s in range(slices)
        for i, place in enumerate(places)
    ]


def lay(devices, sizes):
    """Lay out replica × fsdp × tensor, the other axes of size 1."""
    replica, fsdp, tensor = sizes
    return arrange(devices, (replica, 1, fsdp, 1, 1, tensor)).reshape(sizes)


PODS = {
    "v5p 4×4×4": ("TPU v5p", (4, 4, 4)),
    "v4 2×4×4": ("TPU v4", (2, 4, 4)),
    "v6e 16×16": ("TPU v6 lite", (16, 16, 1)),
    "v6e 8×8": ("TPU v6 lite", (8, 8, 1)),
    "v6e 2×4": ("TPU v6 lite", (2, 4, 1)),
    "v5e 4×4": ("TPU v5 lite", (4, 4, 1)),
}


@pytest.mark.parametrize("name", PODS)
def test_every_mesh_of_powers_of_two_is_laid_over_a_pod(name):
    kind, sides = PODS[name]
    chips = pod(kind, *sides)
    power = len(chips).bit_length() - 1
    for replica in range(power + 1):
        for tensor in range(power + 1 - replica):
            sizes = (2**replica, 2 ** (power - replica - tensor), 2**tensor)
            laid = lay(chips, sizes)
            assert laid.shape == sizes
            assert {chip.id for chip in laid.flat} == set(range(len(chips))), sizes


def test_whole_links_go_to_an_axis_where_the_sizes_allow():
    laid = lay(pod("TPU v5p", 4, 4, 4), (4, 16, 1))
    for replica in laid:  # 16-way fsdp: a plane of the torus
        assert [len({chip.coords[i] for chip in replica.flat}) for i in range(3)].count(4) == 2


@pytest.mark.parametrize("sizes", [(2, 64, 1), (4, 16, 2), (2, 1, 64), (128, 1, 1)])
def test_only_replica_crosses_slices(sizes):
    laid = lay(pod("TPU v5p", 4, 4, 4, slices=2), sizes)
    assert laid.shape == sizes and len(set(laid.flat)) == 128
    for replica in laid:
        assert len({chip.slice_index for chip in replica.flat}) == 1


def test_a_mesh_that_a_pod_does_not_allow_says_so():
    two = pod("TPU v5p", 4, 4, 4, slices=2)
    with pytest.raises(ParallelError, match=r"replica 1 does not divide by the 2 slices"):
        lay(two, (1, 128, 1))
    with pytest.raises(ParallelError, match=r"replica 2 × fsdp 48 .* 96 devices \(TPU v5p, 2 sl"):
        lay(two[:96], (2, 48, 1))
    with pytest.raises(ParallelError, match="cannot be laid over these 3 devices"):
        lay(pod("TPU v5p", 2, 2, 1)[:3], (1, 3, 1))


def test_machines_with_a_switch_are_taken_one_after_the_other():
    gpus = [Chip(i, (0, 0, 0), "NVIDIA H100", slice_index=i % 2, platform="gpu") for i in range(16)]
    assert [{gpu.slice_index for gpu in row.flat} for row in lay(gpus, (2, 8, 1))] == [{0}, {1}]
    assert lay(gpus, (1, 16, 1)).shape == (1, 16, 1)
