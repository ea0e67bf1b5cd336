"""Seconds of a step from a program's text: what counts, how often, and what is told."""

import dataclasses

import pytest

from maxlm.errors import PlanError
from maxlm.parallel.chips import CHIPS
from maxlm.plan.reading.kernels import KernelTime
from maxlm.plan.reading.read import read_program
from maxlm.plan.result import StepTime
from tests.plan.program_text import PROGRAM

V5P = CHIPS["v5p"]


def second(call, chip):
    return KernelTime(1e-3, "a rule of this test")


def read(text=PROGRAM, chip=V5P):
    return read_program(text, chip=chip, kernel_seconds=second)


@pytest.fixture(scope="module")
def reading():
    return read()


def operation(reading, name):
    (found,) = [o for o in reading.operations if o.name == name]
    return found


def test_cycles_count_as_often_as_their_loop_runs(reading):
    fusion = operation(reading, "fusion.1")
    assert (fusion.kind, fusion.times, fusion.estimated) == ("matmul", 3, True)
    assert fusion.seconds == pytest.approx(3 * 1000 / 1.75e9)
    assert fusion.source == "maxlm/model/mlp.py:57"
    assert fusion.module == "jit(step)/mlp/dot_general"
    assert reading.time.matmuls == pytest.approx(3 * 2100 / 1.75e9)


def test_another_chip_has_another_clock():
    assert read(chip=CHIPS["v5e"]).time.matmuls == pytest.approx(3 * 2100 / 1.5e9)


def test_kernels_count_apart_and_how_is_told(reading):
    assert operation(reading, "splash_mha_fwd.7").kind == "kernel"
    assert reading.time.kernels == pytest.approx(3e-3)
    assert "kernels by a rule of this test: 3 × splash_mha_fwd" in reading.notes


def test_what_has_no_estimate_is_charged_by_its_bytes_and_listed(reading):
    moved = operation(reading, "transpose.1")
    assert not moved.estimated
    assert moved.seconds == pytest.approx(2 * 1024 * 64 * 4 / V5P.memory_bandwidth)
    assert any("without the compiler's estimate" in note for note in reading.notes)


def test_gathers_that_are_cut_into_steps_are_told(reading):
    assert not any("windowed_einsum" in note for note in reading.notes)
    cut = read(PROGRAM.replace("%body", "%wide.windowed_dot_general_body_ag.1"))
    assert any("windowed_einsum_mib=1000000 leaves them whole" in note for note in cut.notes)


def test_cycles_that_are_negative_are_no_estimate(reading):
    assert not operation(reading, "odd").estimated


def test_copies_between_memories_are_not_charged(reading):
    names = {o.name for o in reading.operations}
    assert not names & {"copy-start.1", "copy-done.1", "tuple.1", "i"}


def test_blocking_and_overlapped_collectives_add_up(reading):
    blocking = {c.kind for c in reading.collectives if not c.is_overlapped}
    assert blocking == {"all-gather", "reduce-scatter"}
    assert reading.time.blocking == pytest.approx(
        sum(c.seconds for c in reading.collectives if not c.is_overlapped)
    )
    (beside,) = [c for c in reading.collectives if c.is_overlapped]
    assert beside.times == 1
    assert reading.time.overlapped == pytest.approx(beside.seconds)
    assert reading.time.exposed == 0
    assert reading.time.total == pytest.approx(reading.time.compute + 3e-3 + reading.time.blocking)


def test_what_compute_does_not_hide_is_exposed():
    slow = dataclasses.replace(V5P, link_bandwidth=1e6)
    time = read_program(PROGRAM, chip=slow, kernel_seconds=second).time
    assert time.exposed == pytest.approx(time.overlapped - time.compute - time.kernels)
    assert time.total == pytest.approx(time.blocking + time.overlapped)


@pytest.mark.parametrize("between", ["", "  %w = f32[64,1024]{1,0} transpose(%g0)"])
def test_only_what_runs_between_start_and_done_hides_a_collective(between):
    gather = "all-gather.3 = bf16[256,512]{1,0} all-gather(%w0)"
    start = "start.3 = (bf16[32,512]{1,0}, bf16[256,512]{1,0}) all-gather-start(%w0)"
    line = next(line for line in PROGRAM.splitlines() if gather in line)
    done = "  %all-gather.3 = bf16[256,512]{1,0} all-gather-done(%start.3)"
    reading = read(PROGRAM.replace(line, "\n".join([line.replace(gather, start), between, done])))
    (sent,) = [c.seconds for c in reading.collectives if c.name == "start.3"]
    hidden = sum(o.seconds for o in reading.operations if o.name == "w")
    assert bool(hidden) == bool(between) and hidden < sent
    assert reading.time.exposed == pytest.approx(sent - hidden)


def test_costliest_first(reading):
    seconds = [o.seconds for o in reading.operations]
    assert seconds == sorted(seconds, reverse=True)
    wires = [c.wire_bytes for c in reading.collectives]
    assert wires == sorted(wires, reverse=True)


BRANCHES = """HloModule m, is_scheduled=true

%cheap (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %f1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%none, backend_config={"estimated_cycles":"10"}
}

%dear (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  ROOT %f2 = f32[8]{0} fusion(%b), kind=kLoop, calls=%none, backend_config={"estimated_cycles":"99"}
}

%none (n: f32[8]) -> f32[8] {
  ROOT %n = f32[8]{0} parameter(0)
}

ENTRY %main (p: s32[], x: f32[8]) -> f32[8] {
  %p = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  %c = f32[8]{0} conditional(%p, %x, %x), branch_computations={%cheap, %dear}
  ROOT %k = f32[8]{0} call(%c), to_apply=%cheap
}
"""


def test_the_dearest_branch_and_calls_count():
    names = [(o.name, o.times) for o in read(BRANCHES).operations]
    assert names == [("f2", 1), ("f1", 1)]


def in_fusion(inner, *, operand="f32[64,1024]{1,0}", result="f32[64,1024]{1,0}"):
    return f"""HloModule m, is_scheduled=true

%fused (p0: f32[64,1024], p1: f32[1,1024], p2: s32[]) -> f32[64,1024] {{
  %p0 = {operand} parameter(0)
  %p1 = f32[1,1024]{{1,0}} parameter(1)
  %p2 = s32[]{{:S(6)}} parameter(2)
  {inner}
}}

ENTRY %main (x: f32[64,1024], u: f32[1,1024], i: s32[]) -> f32[64,1024] {{
  %x = {operand} parameter(0)
  %u = f32[1,1024]{{1,0}} parameter(1)
  %i = s32[]{{:S(6)}} parameter(2)
  ROOT %f = {result} fusion(%x, %u, %i), kind=kLoop, calls=%fused
}}
"""


ROW = 1024 * 4


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        (
            in_fusion(
                "ROOT %d = f32[64,1024]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)",
            ),
            2 * ROW,
        ),
        (
            in_fusion(
                "ROOT %d = f32[1,1024]{1,0} dynamic-slice(%p0, %p2, %p2)",
                result="f32[1,1024]{1,0}",
            ),
            2 * ROW,
        ),
        (in_fusion("ROOT %d = f32[64,1024]{1,0} add(%p0, %p0)"), 2 * 64 * ROW),
        (
            in_fusion(
                "ROOT %d = f32[64,1024]{1,0:S(1)} add(%p0, %p0)",
                result="f32[64,1024]{1,0:S(1)}",
            ),
            64 * ROW,
        ),
    ],
    ids=["update", "slice", "whole", "result on the chip"],
)
def test_of_what_is_sliced_only_the_slice_moves(text, moved):
    (found,) = read(text).operations
    assert found.seconds == pytest.approx(moved / V5P.memory_bandwidth)


def test_a_program_that_is_not_scheduled_is_refused():
    with pytest.raises(PlanError, match="not scheduled"):
        read(PROGRAM.replace(", is_scheduled=true", ""))


def test_a_gpu_is_refused():
    with pytest.raises(PlanError, match=r"h100.*analytic model"):
        read(chip=CHIPS["h100"])


@pytest.mark.slow
def test_a_real_train_step_is_read_whole(small_compiled, small_program):
    """By the compiler of this Python: nothing is unknown, and axes and lines are the model's."""
    reading = read_program(
        small_compiled.text, chip=CHIPS["v5e"], mesh=small_program.mesh, kernel_seconds=second
    )
    time = reading.time
    assert isinstance(time, StepTime) and time.matmuls > 0 and time.elementwise > 0
    layers = small_program.config.model.num_layers
    assert {o.times for o in reading.operations if o.kind == "kernel"} == {layers}
    assert {axis for c in reading.collectives for axis in c.axes} == {"fsdp"}
    assert all(c.axes for c in reading.collectives if c.size > 1)
    matmuls = [o for o in reading.operations if o.kind == "matmul"]
    assert all(o.estimated for o in matmuls)
    assert sum(o.source.startswith("maxlm/") for o in matmuls) > len(matmuls) / 2
