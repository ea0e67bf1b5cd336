"""Looking up embeddings on a mesh: the values, and what travels between the devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ParallelConfig
from maxlm.model.lookup import lookup
from maxlm.parallel.axes import sharding
from maxlm.parallel.mesh import make_mesh

ROWS, WIDTH, BATCH, LENGTH = 128, 64, 16, 32
LAYOUTS = [
    {"replica": 2, "fsdp": 4},
    {"replica": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"fsdp": 2, "expert": 2, "context": 2},
    {"fsdp": 1, "replica": 2, "context": 4},
    {"stage": 2, "fsdp": 2, "context": 2},
    {"stage": 4, "fsdp": 1, "replica": 2},
]


def compiled_gradient(sizes):
    """The compiled gradient by the table of a weighted sum of looked-up rows."""
    mesh = make_mesh(ParallelConfig(**({"fsdp": 1} | sizes)))

    def weighted(table, ids, weights):
        return jnp.sum(lookup(table, ids, jnp.float32) * weights)

    places = [
        sharding(mesh, axes)
        for axes in (
            ("vocab", "table_embed"),
            ("batch", "length"),
            ("rows", "length", "activation"),
        )
    ]
    with jax.set_mesh(mesh):
        gradient = jax.jit(
            jax.value_and_grad(weighted), in_shardings=places, out_shardings=(None, places[0])
        )
        return gradient.lower(
            jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
            jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32),
            jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32),
        ).compile(), places


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_rows_and_the_tables_gradient_are_those_of_one_device(sizes):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    ids = rng.integers(0, ROWS, (BATCH, LENGTH)).astype(np.int32)
    weights = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    program, places = compiled_gradient(sizes)
    value, gradient = program(*map(jax.device_put, (table, ids, weights), places))
    wanted = np.zeros_like(table)
    np.add.at(wanted, ids, weights)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5)
    assert float(value) == pytest.approx(float((table[ids] * weights).sum()), rel=1e-4)


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_no_device_holds_rows_of_the_whole_batch_or_the_whole_tables_gradient(sizes, capfd):
    program, _ = compiled_gradient(sizes)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    width = WIDTH
    for axis in ("fsdp", "expert", "stage", "context"):
        width //= sizes.get(axis, 1)
    reduced = re.findall(r"= f32\[(\d+),(\d+)\]\S* all-reduce\(", program.as_text())
    # What replicas add up is their own part of the table.
    assert all(int(shape[1]) == width for shape in reduced), reduced
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", program.as_text())
    assert gathered == []
