"""Experts over a TPU's devices, compiled ahead of time: kernels and exchanges, forward and backward."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.schema import ExpertExchange, ExpertMatmul
from maxlm.kernels.experts.dispatch import WEIGHT_AXES, ExpertKernels, apply_experts
from maxlm.kernels.experts.mlp import ExpertLinear, ExpertWeights
from maxlm.kernels.grouped_matmul.megablox import megablox
from maxlm.parallel.axes import sharding
from maxlm.plan.topology import parse_topology
from tests.cases import campaign

pytest.importorskip("libtpu", reason="the TPU compiler comes with jax[tpu]")

EXPERTS, VISITS, WIDTH, HIDDEN = 16, 2, 256, 512
TENSOR = (1, 1, 2, 1, 2, 2)  # fsdp 2 × expert 2 × tensor 2
EXPERT = (1, 1, 1, 2, 4, 1)  # context 2 × expert 4
AUTO = ExpertExchange.AUTO


def compiled(topology, sizes, matmul, exchange, places=None, dtype=jnp.bfloat16):
    """The compiled program's text: gradients of experts by tokens, scores and weights."""
    pytest.importorskip("libtpu")
    devices = np.array(parse_topology(topology).devices()).reshape(sizes)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    def array(shape, axes, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, axes))

    tokens = partial(array, axes=("batch", "length", "activation"))
    x = tokens((8, 512, WIDTH), dtype=dtype)
    chosen = tokens((8, 512, VISITS), dtype=jnp.int32)
    scores = tokens((8, 512, VISITS), dtype=jnp.float32)
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    weights = {
        name: array((EXPERTS, *shape), WEIGHT_AXES[name].kernel, dtype)
        for name, shape in shapes.items()
    }

    def loss(x, scores, weights, chosen):
        out = apply_experts(
            x,
            chosen,
            scores,
            ExpertWeights(**{name: ExpertLinear(kernel) for name, kernel in weights.items()}),
            hidden_of=lambda gate, up: jax.nn.silu(gate) * up,
            kernels=ExpertKernels(matmul, exchange),
            places=places,
        )
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return gradient.lower(x, scores, weights, chosen).compile().as_text()


def count(program, operation):
    """How often an operation begins in a program."""
    return len(re.findall(rf"\b{operation}(?:-start)?\(", program))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", campaign("v5p:2x2x2"), campaign("v6e:2x4")])
def test_rows_travel_by_the_ragged_all_to_all_and_megablox_multiplies(topology):
    program = compiled(topology, EXPERT, ExpertMatmul.MEGABLOX, AUTO)
    # Rows and their weights to the experts, and rows back; the gradients take the same ways.
    assert count(program, "ragged-all-to-all") == 6
    # Three matmuls, each with its gradients by rows and by weights.
    assert program.count("tpu_custom_call") >= 9


@pytest.mark.campaign
def test_xla_s_own_grouped_matmul_and_tensor_shards_compile():
    program = compiled("v5e:2x4", TENSOR, ExpertMatmul.RAGGED_DOT, ExpertExchange.ALL_TO_ALL)
    assert count(program, "ragged-all-to-all") == 6


@pytest.mark.slow
def test_where_a_token_visits_as_many_experts_as_there_are_devices_all_tokens_are_gathered():
    program = compiled("v5e:2x4", TENSOR, ExpertMatmul.MEGABLOX, AUTO)
    assert count(program, "ragged-all-to-all") == 0 and count(program, "all-gather") > 0


@pytest.mark.slow
def test_a_fixed_number_of_rows_travels_with_a_capacity():
    program = compiled("v5e:2x4", EXPERT, ExpertMatmul.MEGABLOX, AUTO, places=40)
    assert count(program, "ragged-all-to-all") == 0 and count(program, "all-to-all") >= 4


@pytest.mark.slow
def test_narrow_and_deep_matrices_fit_into_a_v5e_kernel():
    """Those of DeepSeek-V3 by tensor 4, without any of the compiler's options."""
    device = parse_topology("v5e-8").devices()[0]
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = [((1024, 7168), jnp.bfloat16), ((4, 7168, 512), jnp.bfloat16), ((4,), jnp.int32)]
    arrays = [jax.ShapeDtypeStruct(dims, dtype, sharding=place) for dims, dtype in shapes]

    def loss(x, weights, sizes):
        return jnp.sum(megablox(x, weights, sizes).astype(jnp.float32))

    program = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
    assert program.as_text().count("tpu_custom_call") >= 2
