"""Policies change what is kept and what runs twice, and nothing else."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.choices import Rematerialization
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.errors import ParallelError
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.model.rematerialization import check_offload
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch
from tests.cases import few
from tests.kernels.operations import operations

LAYERS, LENGTH = 4, 64
GATED = {
    "vocab_size": 101,
    "num_layers": LAYERS,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
}
# Norms that need their input in the backward pass, and a group of two blocks.
NORMED = GATED | {
    "qk_norm": True,
    "norm": "layer",
    "norm_bias": True,
    "norm_placement": "both",
    "attention_pattern": ["local", "global"],
    "attention_window": 16,
}
POLICIES = [policy for policy in Rematerialization if policy is not Rematerialization.NONE]


def batch():
    """Two rows of two documents each, which end inside the row."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 101, (2, LENGTH + 1), dtype=np.int32)
    index = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    second = index >= np.array([[23], [40]])
    segments = 1 + second.astype(np.int32)
    positions = np.where(second, index - np.array([[23], [40]]), index).astype(np.int32)
    weights = np.ones((2, LENGTH), np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, segments, positions)


def model_of(shape, policy, dtype=jnp.float32):
    execution = Execution(compute_dtype=dtype, param_dtype=dtype, rematerialization=policy)
    return define(ModelConfig(**shape), execution)


def gradients(shape, policy, mesh):
    model = model_of(shape, policy, jnp.float64)
    with jax.set_mesh(mesh):
        placed = place_batch(batch(), 2, local_rows(2, mesh), mesh)
        grad = jax.jit(jax.grad(lambda p: model.bind(p).loss(placed).total))
        return {n: np.asarray(g) for n, g in grad(model.init(0, mesh)).items()}


@pytest.fixture(scope="module")
def kept():
    """Gradients with everything saved."""
    with jax.enable_x64(True):
        mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
        return gradients(NORMED, Rematerialization.NONE, mesh)


@pytest.mark.parametrize(
    "policy", few(POLICIES, ("matmuls", "attention", "offload_inputs").__contains__)
)
def test_gradients_are_those_of_a_pass_that_saves_everything(policy, kept):
    with jax.enable_x64(True):
        mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
        equal(gradients(NORMED, policy, mesh), kept)


def test_offloading_on_a_mesh_gives_the_gradients_of_one_device(kept):
    with jax.enable_x64(True):
        mesh = make_mesh(ParallelConfig(fsdp=2, tensor=2), jax.devices()[:4])
        equal(gradients(NORMED, Rematerialization.OFFLOAD_ATTENTION, mesh), kept)


def equal(found, kept):
    for name, wanted in kept.items():
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-12 * scale, err_msg=name)


# Query, key, value, output, gate and up; the MLP's last matmul only where a norm follows it.
TWICE = {"none": 0, "matmuls": 0, "attention": 3, "full": 6}
TWICE |= {"offload_attention": 3, "offload_inputs": 6}


@pytest.mark.parametrize("shape, more", [(GATED, 0), (NORMED, 1)], ids=["gated", "normed"])
def test_as_many_projections_run_twice_as_a_policy_says(shape, more):
    found = {}
    for policy in Rematerialization:
        model = model_of(shape, policy)
        shapes = {n: jax.ShapeDtypeStruct(i.shape, "float32") for n, i in model.parameters.items()}
        grad = jax.grad(lambda p, m=model: m.bind(p).loss(batch()).total)
        found[policy.value] = count_projections(jax.make_jaxpr(grad)(shapes).jaxpr)
    extra = {name: (count - found["none"]) / LAYERS for name, count in found.items()}
    assert extra == {name: count + more * (count > 0) for name, count in TWICE.items()}


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_no_matmul_of_experts_runs_twice_where_matmuls_are_kept(capacity):
    experts = {"num_experts": 4, "experts_per_token": 2, "expert_mlp_dim": 16}
    found = {}
    for policy in ("none", "matmuls", "full"):
        shape = GATED | experts | {"capacity_factor": capacity}
        model = model_of(shape, Rematerialization(policy))
        shapes = {n: jax.ShapeDtypeStruct(i.shape, "float32") for n, i in model.parameters.items()}
        grad = jax.grad(lambda p, m=model: m.bind(p).loss(batch()).total)
        found[policy] = operations(jax.make_jaxpr(grad)(shapes).jaxpr)["dot_general"]
    assert found["none"] == found["matmuls"] < found["full"]


def count_projections(jaxpr) -> int:
    """Matmuls of activations by weights: those without batch dims (attention's have some).

    Not those by a square of a head's width: on a TPU, RoPE swaps a head's halves by one.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            is_rope = equation.invars[1].aval.shape == (GATED["head_dim"],) * 2
            total += not is_rope and not equation.params["dimension_numbers"][1][0]
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        branches = [branch.jaxpr for branch in equation.params.get("branches", ())]
        counts = [count_projections(part) for part in inner if hasattr(part, "eqns")]
        counts.append(max([count_projections(part) for part in branches], default=0))
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(counts)
    return total


def test_what_is_computed_again_takes_no_memory():
    sizes = []
    for policy in ("none", "matmuls", "attention", "full"):
        model = model_of(GATED | {"num_layers": 16}, Rematerialization(policy))
        shapes = {n: jax.ShapeDtypeStruct(i.shape, "float32") for n, i in model.parameters.items()}
        grad = jax.grad(lambda p, m=model: m.bind(p).loss(batch()).total)
        sizes.append(jax.jit(grad).lower(shapes).compile().memory_analysis().temp_size_in_bytes)
    saved = [more - less for more, less in pairwise(sizes)]
    assert min(saved) > 0, sizes
    # `attention` against `matmuls`: the projected attention, gate and up of 16 layers; 4 bytes each.
    assert saved[1] > 0.8 * 16 * 2 * LENGTH * (32 + 2 * 64) * 4, sizes


class OwnMemory:
    """A device that reaches no memory of the host."""

    device_kind = "Fictitious 9000"

    class _Memory:
        kind = "device"

    def addressable_memories(self):
        return [self._Memory()]


class OneDevice:
    devices = np.array([OwnMemory()])


def test_offloading_without_host_memory_is_refused():
    with pytest.raises(ParallelError, match=r"offload_inputs .*pinned_host.*Fictitious.*full"):
        check_offload(Rematerialization.OFFLOAD_INPUTS, OneDevice())
    check_offload(Rematerialization.FULL, OneDevice())
