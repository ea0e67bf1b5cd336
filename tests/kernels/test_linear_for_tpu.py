"""The linear map's gradients, compiled ahead of time for a TPU's devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ParallelConfig
from maxlm.kernels.linear import linear
from maxlm.kernels.row_major import STAYS_DIVIDED
from maxlm.parallel.axes import sharding
from maxlm.parallel.mesh import make_mesh
from maxlm.plan.topology import parse_topology

pytest.importorskip("libtpu", reason="the TPU compiler comes with jax[tpu]")

ROWS, LENGTH, WIDTH, HIDDEN = 8, 256, 256, 1024


@pytest.fixture(scope="module")
def program():
    """Text of the gradients of an MLP over fsdp 2 × tensor 2, mapped over two of them."""
    mesh = make_mesh(ParallelConfig(fsdp=2, tensor=2), parse_topology("v5e-4").devices())

    def array(shape, axes):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding(mesh, axes))

    x = array((2, ROWS, LENGTH, WIDTH), ("groups", "batch", "length", "activation"))
    up = array((2, WIDTH, HIDDEN), ("groups", "embed", "mlp"))
    down = array((2, HIDDEN, WIDTH), ("groups", "mlp", "embed"))

    def loss(x, up, down):
        def mlp(x, up, down):
            return linear(jax.nn.silu(linear(x, up, 1)), down, 1)

        return jnp.sum(jnp.square(jax.vmap(mlp)(x, up, down).astype(jnp.float32)))

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, up, down)
    assert ("LayoutConstraint" in lowered.as_text()) == STAYS_DIVIDED
    return lowered.compile().as_text()


def test_pinned_gradients_stay_divided(program):
    # A quarter of the hidden activations, of half the rows and half the width; never more.
    hidden = [
        np.prod([int(d) for d in dims.split(",")])
        for dims in re.findall(r"= \w+\[([\d,]+)\]", program)
    ]
    assert max(hidden) <= 2 * ROWS * LENGTH * HIDDEN // 4


def test_gradients_by_the_input_are_row_major(program):
    shape = rf"\w+\[2,{ROWS // 2},{LENGTH},{HIDDEN // 2}\]"
    layouts = set(re.findall(rf"= {shape}\{{([\d,]+)", program))
    assert layouts == {"3,2,1,0"}
