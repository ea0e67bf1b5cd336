"""Memory by kind: the state exactly, padding explained, and what the loops of a program carry."""

from __future__ import annotations

import jax
import pytest

from maxlm.config.load import load_config
from maxlm.plan.compiling.program import build_program
from maxlm.plan.reading.kept_for_backward import kept_for_backward
from maxlm.plan.reading.memory import compiled_memory, needed_bytes, state_memory
from maxlm.plan.reading.shapes import arrays, entry_arguments
from tests.plan.conftest import SMALL


@pytest.mark.parametrize(
    ("text", "padded", "plain"),
    [
        ("f32[512,32]{0,1:T(8,128)}", 65_536, 65_536),
        ("f32[12,64]{1,0:T(8,128)}", 16 * 128 * 4, 12 * 64 * 4),
        ("f32[4,128]{1,0:T(4,128)}", 2048, 2048),
        ("s32[]{:T(128)}", 512, 4),
        ("bf16[2,256,100]{2,1,0:T(8,128)(2,1)S(1)}", 2 * 256 * 128 * 2, 2 * 256 * 100 * 2),
        ("bf16[3,5]{1,0}", 30, 30),
    ],
)
def test_a_layout_pads_the_fastest_dims_to_whole_tiles(text, padded, plain):
    (array,) = arrays(text)
    assert (array.padded_bytes, array.bytes) == (padded, plain)


@pytest.mark.slow
def test_state_and_batch_are_the_compilers_arguments_to_the_byte(small_program, small_compiled):
    memory = compiled_memory(small_program, small_compiled, small_program_chip())
    arguments = entry_arguments(small_compiled.text)
    said = small_compiled.memory["argument_size_in_bytes"]
    assert sum(array.padded_bytes for array in arguments) == said
    # Counters of 4 bytes take a tile of 512: two of the state and the optimizer's.
    batch, counters = 5 * (8 // 4) * 256 * 4, 3 * 512
    assert memory.parameters + memory.optimizer + batch + counters - 512 == said
    plain = state_memory(small_program, small_program_chip())
    assert memory.parameters == plain.parameters  # of these shapes nothing is padded
    assert memory.optimizer == plain.optimizer + 512 - 4


@pytest.mark.slow
def test_the_kinds_add_up_to_what_the_compiler_allocates(small_program, small_compiled):
    memory, said = compiled_memory(small_program, small_compiled, small_program_chip()), {}
    said = small_compiled.memory
    written = said["output_size_in_bytes"] - said["alias_size_in_bytes"]
    total = said["argument_size_in_bytes"] + said["temp_size_in_bytes"] + written
    assert memory.total == total + said["generated_code_size_in_bytes"]
    assert memory.fits and memory.capacity == round(15.75 * 2**30)


@pytest.mark.parametrize("average", ["null", "0.999"])
def test_the_state_is_what_real_arrays_take(average):
    options = [*SMALL, "optimizer.kind=muon", "parallel.fsdp=4", "parallel.replica=2"]
    config = load_config(["models/nano-4x128"], [*options, f"optimizer.average_decay={average}"])
    program = build_program(config, jax.devices()[:8])
    state = program.fresh_state()
    on_first = {
        name: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        for name, tree in state._asdict().items()
    }
    memory = state_memory(program, small_program_chip())
    assert memory.parameters == on_first["params"] + on_first["variables"]
    assert memory.optimizer == on_first["opt_state"] + on_first["average"]


PROGRAM = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[4,64,128]{2,1,0:T(8,128)})->f32[]}

%forward (param.1: (s32[], bf16[8,128], bf16[4,8,128], bf16[4,64,128])) -> (s32[], bf16[8,128], bf16[4,8,128], bf16[4,64,128]) {
  %param.1 = (s32[], bf16[8,128], bf16[4,8,128], bf16[4,64,128]) parameter(0)
  %i = s32[] get-tuple-element(%param.1), index=0
  %x = bf16[8,128] get-tuple-element(%param.1), index=1
  %kept = bf16[4,8,128] get-tuple-element(%param.1), index=2
  %weights = bf16[4,64,128] get-tuple-element(%param.1), index=3
  %next = s32[] add(%i, %i)
  %y = bf16[8,128] negate(%x)
  %more = bf16[4,8,128] fusion(%kept, %x, %i), kind=kLoop, calls=%f
  ROOT %out = (s32[], bf16[8,128], bf16[4,8,128], bf16[4,64,128]) tuple(%next, %y, %more, %weights)
}

%backward (param.2: (s32[], f32[4,64,128], bf16[4,8,128], bf16[4,64,128])) -> (s32[], f32[4,64,128], bf16[4,8,128], bf16[4,64,128]) {
  %param.2 = (s32[], f32[4,64,128], bf16[4,8,128], bf16[4,64,128]) parameter(0)
  %j = s32[] get-tuple-element(%param.2), index=0
  %gradient = f32[4,64,128] get-tuple-element(%param.2), index=1
  %read = bf16[4,8,128] get-tuple-element(%param.2), index=2
  %w = bf16[4,64,128] get-tuple-element(%param.2), index=3
  %less = s32[] subtract(%j, %j)
  %sum = f32[4,64,128] fusion(%gradient, %read, %w, %j), kind=kLoop, calls=%f
  ROOT %back = (s32[], f32[4,64,128], bf16[4,8,128], bf16[4,64,128]) tuple(%less, %sum, %read, %w)
}

ENTRY %main (argument: f32[4,64,128]) -> f32[] {
  %argument = f32[4,64,128]{2,1,0:T(8,128)} parameter(0)
  %cast = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} convert(%argument)
  %start = (s32[], bf16[8,128], bf16[4,8,128], bf16[4,64,128]) tuple(%a, %b, %c, %cast)
  %while.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}, /*index=3*/bf16[4,64,128]{2,1,0:T(8,128)(2,1)}) while(%start), condition=%c1, body=%forward, metadata={op_name="jit(train_step)/jvp()/while"}
  %residual = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=2
  %carried = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=3
  %moved = bf16[4,8,128]{2,1,0:T(8,128)(2,1)SPACE} copy(%residual)
  %begin = (s32[], f32[4,64,128], bf16[4,8,128], bf16[4,64,128]) tuple(%a, %zeros, %moved, %carried)
  %while.2 = (s32[]{:T(128)}, f32[4,64,128]{2,1,0:T(8,128)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)SPACE}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}) while(%begin), condition=%c2, body=%backward, metadata={op_name="jit(train_step)/transpose(jvp())/while"}
  ROOT %loss = f32[] constant(0)
}
"""


def test_what_the_forward_loop_wrote_and_the_backward_loop_reads_is_kept():
    kept = kept_for_backward(PROGRAM.replace("SPACE", ""), {(4, 64, 128)})
    assert kept.activations == 4 * 8 * 128 * 2  # not the weights, which the forward only read
    assert kept.gradients == 4 * 64 * 128 * 4
    assert kept.host == 0


def test_what_lies_in_fast_or_host_memory_is_not_the_devices():
    in_host = kept_for_backward(PROGRAM.replace("SPACE", "S(5)"), set())
    assert (in_host.activations, in_host.host) == (0, 4 * 8 * 128 * 2)
    in_fast = kept_for_backward(PROGRAM.replace("SPACE", "S(1)"), set())
    assert (in_fast.activations, in_fast.host) == (0, 0)


def test_a_program_without_loops_keeps_nothing_that_can_be_told_apart():
    assert (
        kept_for_backward(
            "HloModule m\n\nENTRY %m (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n",
            {()},
        ).activations
        == 0
    )


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("the total memory required for HLO temporaries (25.39G) exceeds available", 25.39),
        ("Ran out of memory in memory space hbm. Used 17.46G of 15.75G hbm.", 17.46),
    ],
)
def test_the_compilers_refusal_says_how_much(text, needed):
    assert needed_bytes(text) == round(needed * 2**30)
    assert needed_bytes("RESOURCE_EXHAUSTED: no words") is None


def small_program_chip():
    from maxlm.parallel.chips import CHIPS

    return CHIPS["v5e"]
