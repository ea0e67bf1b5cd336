import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import ParallelConfig
from maxlm.errors import ParallelError
from maxlm.parallel.axes import over_shards
from maxlm.parallel.mesh import make_mesh

AXES = ("batch", None, "heads")


def _double(x):
    """Twice its input, and the shape that it saw added."""
    return 2 * x + jnp.asarray(x.shape, x.dtype).sum()


def _run(x):
    return over_shards(_double, (AXES,), AXES)(x)


def test_without_a_mesh_it_is_the_function_itself():
    assert over_shards(_double, (AXES,), AXES) is _double


@pytest.mark.parametrize(
    ("sizes", "shape", "seen"),
    [
        ({"fsdp": 4, "tensor": 2}, (8, 6, 4), (2, 6, 2)),
        ({"fsdp": 2, "context": 2, "expert": 2}, (8, 6, 4), (2, 6, 4)),
        ({"fsdp": 8}, (3, 6, 4), (3, 6, 4)),  # the batch does not divide: whole everywhere
    ],
)
def test_the_function_sees_a_device_shard(sizes, shape, seen):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    with jax.set_mesh(make_mesh(ParallelConfig(**sizes))):
        out, pullback = jax.vjp(jax.jit(_run), x)
        (grad,) = pullback(x)
    np.testing.assert_array_equal(out, 2 * x + sum(seen))
    np.testing.assert_array_equal(grad, 2 * x)


def test_inside_a_map_over_all_axes_it_is_the_function_itself():
    with jax.set_mesh(make_mesh(ParallelConfig(fsdp=8))):
        run = jax.jit(jax.shard_map(_run, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False))
        out = run(jnp.zeros((8, 6, 4)))
    assert out[0, 0, 0] == 1 + 6 + 4


def test_inside_a_map_over_one_axis_it_maps_over_the_others():
    with jax.set_mesh(make_mesh(ParallelConfig(stage=2, fsdp=2, tensor=2))):

        def stage(x):
            return _run(x[0])[None]

        run = jax.shard_map(
            stage, in_specs=P("stage"), out_specs=P("stage"), axis_names={"stage"}, check_vma=False
        )
        out = jax.jit(run)(jnp.zeros((2, 8, 6, 4)))
    np.testing.assert_array_equal(out, np.full((2, 8, 6, 4), 4 + 6 + 2))


def test_heads_that_do_not_divide_are_refused():
    with (
        jax.set_mesh(make_mesh(ParallelConfig(fsdp=2, tensor=4))),
        pytest.raises(ParallelError, match=r"heads dim of 6 .* 4 shards \(tensor 4\)"),
    ):
        _run(jnp.zeros((2, 3, 6)))
