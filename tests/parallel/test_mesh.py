import jax
import numpy as np
import pytest

from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.errors import ParallelError
from maxlm.model.definition import define
from maxlm.parallel.mesh import check_batch, make_mesh, mesh_sizes
from maxlm.parallel.placement import local_rows, place_batch


def test_one_axis_takes_what_is_left():
    assert mesh_sizes(ParallelConfig(replica=2, fsdp=-1, tensor=2), 8) == (2, 2, 2)


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
