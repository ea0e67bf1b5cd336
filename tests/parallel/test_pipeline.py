"""The schedule by itself, on layers of a few numbers: equal to running them one after the other."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import ParallelConfig
from maxlm.errors import ParallelError
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.pipeline import pipelined
from maxlm.parallel.stages import Stages

WIDTH = 6


def layer(x, weight, shift, slope):
    """A layer that depends on what goes with the rows, and on what is the same for all."""
    return jnp.tanh(x @ weight) * slope + shift[:, None]


def one_after_the_other(weights, x, beside):
    sums = []
    for weight in weights:
        x = layer(x, weight, **beside)
        sums.append((x**2).sum())
    return x, jnp.stack(sums)


def piece(weights, x, beside):
    def body(x, weight):
        x = layer(x, weight, **beside)
        return x, (x**2).sum()

    return jax.lax.scan(body, x, weights)


def inputs(layers, rows, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(layers, WIDTH, WIDTH)) / 2
    return weights, rng.normal(size=(rows, WIDTH)), rng.normal(size=rows)


def in_stages(stages, weights, x, beside, **options):
    x, sums = pipelined(
        stages,
        piece,
        stages.to_stage_order(weights),
        x,
        beside,
        axes=("activation",),
        **options,
    )
    return x, stages.to_layer_order(sums)


def loss(run, weights, x, shift):
    y, sums = run(weights, x, {"shift": shift, "slope": 0.9})
    return (y * jnp.arange(y.size).reshape(y.shape)).sum() + (sums * sums).sum(), (y, sums)


@pytest.mark.parametrize(
    ("count", "rounds", "per_piece", "groups"),
    [
        (2, 1, 1, 1),
        (2, 1, 2, 3),
        (2, 2, 1, 1),
        (2, 3, 2, 2),
        (3, 2, 1, 3),
        (4, 1, 1, 2),
        (4, 3, 1, 1),
    ],
)
def test_values_sums_and_gradients_equal_layers_one_after_the_other(
    count, rounds, per_piece, groups
):
    with jax.enable_x64(True):
        stages = Stages(count, rounds, microbatches=count * groups)
        given = inputs(count * rounds * per_piece, rows=count * groups * 2)

        def value_and_gradients(run):
            return jax.jit(jax.value_and_grad(partial(loss, run), argnums=(0, 1, 2), has_aux=True))(
                *given
            )

        found = value_and_gradients(partial(in_stages, stages))
        wanted = value_and_gradients(one_after_the_other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), found, wanted)


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_comes_around_a_bubble_reaches_no_gradient(rounds):
    """A row that went through all layers would overflow in one more; its gradient would be NaN."""
    stages = Stages(2, rounds, microbatches=4)
    weights, x = jnp.full(2 * rounds, 1e36 ** (1 / (2 * rounds))), jnp.ones((4, 1))

    def run(weights, x, beside):
        return jax.lax.scan(lambda x, w: (x * w, None), x, weights)

    def total(weights):
        return pipelined(stages, run, weights, x, None, axes=("activation",))[0].sum()

    value, gradient = jax.value_and_grad(total)(stages.to_stage_order(weights))
    np.testing.assert_allclose(value, 4e36, rtol=1e-5)
    np.testing.assert_allclose(gradient, 4e36 / weights[0], rtol=1e-5)
    assert not np.isfinite(jnp.float32(1e36) * weights[0] ** 2)


@pytest.mark.parametrize(
    ("rows", "nearest"), [(2, "data shards of a pipeline: nearest are 4"), (10, "8 and 12")]
)
def test_rows_that_do_not_divide_over_the_data_shards_are_refused(rows, nearest):
    mesh = make_mesh(ParallelConfig(stage=2, fsdp=4))
    given = inputs(2, rows)
    with jax.set_mesh(mesh), pytest.raises(ParallelError, match=nearest):
        jax.eval_shape(partial(loss, partial(in_stages, Stages(2))), *given)


@pytest.mark.parametrize("rounds", [1, 3])
def test_layers_stay_with_their_stage_and_only_rows_move(rounds):
    mesh = make_mesh(ParallelConfig(stage=4, fsdp=2))
    stages = Stages(4, rounds)
    weights, x, shift = inputs(12, rows=32)

    def gradients(weights, x, shift):
        def total(weights):
            y, _ = pipelined(
                stages, piece, weights, x, {"shift": shift, "slope": 0.9}, axes=("activation",)
            )
            return (y**2).sum()

        return jax.grad(total)(weights)

    def place(array, *spec):
        return jax.device_put(array.astype(np.float32), NamedSharding(mesh, P(*spec)))

    with jax.set_mesh(mesh):
        given = (
            place(weights, "stage"),
            place(x, ("fsdp", "stage")),
            place(shift, "fsdp"),
        )
        layers = given[0].sharding
        compiled = jax.jit(gradients, out_shardings=layers).lower(*given).compile()
    text = compiled.as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text and "all-to-all" not in text
    # Gradients are added over fsdp, and nothing else is.
    reduced = [line for line in text.splitlines() if " all-reduce(" in line]
    assert all("replica_groups=[4,2]<=[8]" in r or "{{0,1},{2,3}," in r for r in reduced), reduced


@pytest.mark.parametrize("rounds", [1, 2])
def test_of_a_tick_rows_are_kept_and_neither_parameters_nor_masks(rounds):
    stages = Stages(2, rounds, microbatches=4)
    ticks = 4 * rounds + 1
    weights, x, shift = inputs(2 * rounds, rows=20)  # 5 rows a microbatch, 6 wide
    run = partial(in_stages, stages)
    text = str(jax.make_jaxpr(jax.grad(lambda w: loss(run, w, x, shift)[0]))(weights))
    kept = set(re.findall(rf"\w+\[{ticks},[\d,]+\]", text))
    assert f"f32[{ticks},2,5,6]" in kept or f"f32[{ticks},1,2,5,6]" in kept
    assert not any(shape.endswith("6,6]") for shape in kept), kept
    assert not any(shape.startswith("bool") and shape.endswith("5,6]") for shape in kept), kept


def test_the_program_grows_neither_with_layers_nor_with_microbatches():
    def operations(layers, rows):
        stages = Stages(2, 2, microbatches=rows)
        weights, x, shift = inputs(layers, rows)
        run = partial(in_stages, stages)
        step = jax.grad(lambda w: loss(run, w, x, shift)[0])
        return str(jax.make_jaxpr(step)(weights)).count(" = ")  # operations

    assert operations(4, 4) == operations(64, 4) == operations(64, 64)
