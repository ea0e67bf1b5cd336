"""Experts over a pipeline's stages, compiled ahead of time for a TPU: gradients of a small model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from maxlm.batch import Batch
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.schema import ExpertExchange, ExpertMatmul, ModelConfig, ParallelConfig
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.axes import sharding
from maxlm.parallel.stages import stages_of

pytest.importorskip("libtpu", reason="the TPU compiler comes with jax[tpu]")

SIZES = {"stage": 2, "expert": 2}
MODEL = ModelConfig(
    vocab_size=256,
    num_layers=2,
    embed_dim=256,
    num_heads=2,
    num_kv_heads=1,
    head_dim=128,
    mlp_dim=512,
    num_experts=4,
    experts_per_token=2,
    expert_mlp_dim=256,
)


@pytest.mark.campaign
@pytest.mark.usefixtures("usual_effort")  # with the least, libtpu 0.0.42 aborts
def test_rows_travel_to_their_experts_inside_a_stage_and_activations_to_the_next():
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name="v5e:2x2", num_slices=1
        )
    except Exception as error:
        pytest.skip(f"no TPU compiler here: {error}")
    devices = np.array(described.devices).reshape([SIZES.get(axis, 1) for axis in MESH_AXES])
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    stages = stages_of(ParallelConfig(fsdp=1, **SIZES), mesh)
    kernels = ExpertKernels(ExpertMatmul.MEGABLOX, ExpertExchange.ALL_TO_ALL)
    model = define(MODEL, Execution(jnp.bfloat16, experts=kernels, stages=stages))
    params = {
        name: jax.ShapeDtypeStruct(info.shape, jnp.float32, sharding=model.shardings(mesh)[name])
        for name, info in model.parameters.items()
    }
    place = sharding(mesh, ("batch", "length"))
    kinds = Batch(jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
    # With 8 rows libtpu 0.0.52 fails in itself: "INTERNAL: Value … overlaps with another chunk".
    batch = Batch(*(jax.ShapeDtypeStruct((16, 256), kind, sharding=place) for kind in kinds))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(lambda p, b: model.bind(p).loss(b).total))
        program = gradient.lower(params, batch).compile().as_text()
    # Both ways over the stages; to the experts and back, forward and backward.
    assert len(re.findall(r"\bcollective-permute(?:-start)?\(", program)) >= 2
    assert len(re.findall(r"\bragged-all-to-all(?:-start)?\(", program)) >= 4
    assert program.count("tpu_custom_call") >= 3  # megablox
