"""What the tool says of a policy: by the TPU compiler, by counting, by its table."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

SMALL = ["model.num_layers=2", "model.embed_dim=128", "model.num_heads=1", "model.num_kv_heads=1"]
SMALL += ["model.head_dim=128", "model.mlp_dim=256", "model.vocab_size=256"]

# As the compiler writes it: a loop of three, a call, a continued line, a kernel.
PROGRAM = """HloModule step, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %fusion.1 = f32[8] fusion(%p), kind=kOutput, calls=%f, backend_config={"estimated_cycles":"100"}
  %attention.7 = f32[8] custom-call(%fusion.1), custom_call_target="tpu_custom_call", kernel_metadata={
"of": "several lines"
}}, metadata={op_name="attention"}
  %fusion.3 = f32[8] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"20"}
  ROOT %tuple = (s32[], f32[8]) tuple(%fusion.1)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(3)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %constant.2), direction=LT
}

%inner (a: f32[8]) -> f32[8] {
  ROOT %fusion.2 = f32[8] fusion(%a), kind=kLoop, backend_config={"estimated_cycles":"5"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  %loop = (s32[], f32[8]) while(%a), condition=%condition, body=%body
  %call = f32[8] call(%a), to_apply=%inner
  ROOT %odd = f32[8] fusion(%call), kind=kLoop, backend_config={"estimated_cycles":"18446744073709551000"}
}
"""


def test_cycles_are_multiplied_by_the_trips_of_loops():
    from tpu_cycles import estimate

    found = estimate(PROGRAM)
    assert (found.cycles, found.matmul_cycles) == (3 * (100 + 20) + 5, 3 * 100)
    assert found.kernels == {"attention": 3}


def test_a_loop_of_unknown_length_is_refused():
    from tpu_cycles import estimate

    with pytest.raises(ValueError, match="how often"):
        estimate(PROGRAM.replace("constant(3)", "parameter(1)"))


@pytest.mark.slow
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
