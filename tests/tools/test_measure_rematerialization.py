"""What the tool says of a policy: by the TPU compiler, by counting, by its table."""

import sys
from pathlib import Path

import pytest

from tests.plan.program_text import PROGRAM

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

SMALL = ["model.num_layers=2", "model.embed_dim=128", "model.num_heads=1", "model.num_kv_heads=1"]
SMALL += ["model.head_dim=128", "model.mlp_dim=256", "model.vocab_size=256"]


def test_cycles_count_as_often_as_they_run_and_kernels_by_name():
    from measure_rematerialization import _estimated

    found = _estimated(PROGRAM, "TPU v5")
    assert found["estimated_matmul_cycles"] == 3 * (1000 + 1100)
    assert found["estimated_cycles"] == found["estimated_matmul_cycles"]
    assert found["kernel_calls"] == {"splash_mha_fwd": 3}


@pytest.mark.campaign
def test_offloaded_activations_lie_in_the_hosts_memory_on_a_tpu():
    pytest.importorskip("libtpu")
    import jax
    from measure_rematerialization import topology_devices
    from train_program import build

    (device,) = topology_devices("v5e:2x2", 1)
    overrides = [*SMALL, "data.length=256", "data.batch_size=2", "parallel.scan_unroll=1"]
    overrides.append("parallel.rematerialization=offload_inputs")
    program = build(["models/llama3-8b"], overrides, devices=[device])
    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
        compiled = program.step.lower(program.layout, program.batch).compile()
    # The inputs of two blocks, in bfloat16.
    assert compiled.memory_analysis().host_temp_size_in_bytes >= 2 * 2 * 256 * 128 * 2
