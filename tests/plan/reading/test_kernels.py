"""Pallas kernels: what they are called with, which blocks run, and seconds by rule and by schedule."""

import base64
import json
import math
from dataclasses import replace

import pytest

from maxlm.errors import PlanError
from maxlm.parallel.chips import CHIPS
from maxlm.plan.reading import kernel_schedule
from maxlm.plan.reading.constants import Scope
from maxlm.plan.reading.hlo import parse_program
from maxlm.plan.reading.kernel_schedule import (
    Schedule,
    read_bundles,
    schedule_kernel,
    scheduled_seconds,
    seconds_by_schedule,
)
from maxlm.plan.reading.kernels import (
    EFFICIENCY,
    KernelCall,
    executed_share,
    is_kernel,
    kernel_call,
    kernel_flops,
    seconds_by_rule,
)
from maxlm.plan.reading.shapes import Array
from tests.plan.program_text import PROGRAM

V5P = CHIPS["v5p"]
TABLE = Array("s8", (1, 8, 8))
ATTENTION = KernelCall(
    name="splash_mha_fwd_segmented",
    operands=(TABLE, TABLE, *[Array("bf16", (32, 8192, 128))] * 3),
    results=(Array("bf16", (32, 8192, 128)),),
    moved_bytes=4 * 32 * 8192 * 128 * 2,
    config='{"custom_call_config":{"body":"TUzvUg==","debug_locations":"x"}}',
    blocks=None,
    is_masked=True,
)


def test_a_call_is_read_with_the_table_that_the_loop_carries():
    program = parse_program(PROGRAM)
    main, body = program.computations["main"], program.computations["body"]
    scope = Scope(program, main).of_loop(main.by_name["while.1"], body)
    call = kernel_call(body.by_name["splash_mha_fwd.7"], scope)
    assert call.name == "splash_mha_fwd"
    assert call.blocks == (1, 0, 2, 1)
    assert executed_share(call) == 0.75
    assert call.operands[2] == Array("bf16", (128, 256))
    assert json.loads(call.config)["custom_call_config"]["body"] == "TUzvUg=="


def test_a_table_that_is_not_known_is_taken_for_causal():
    assert executed_share(ATTENTION) == 36 / 64


def test_a_kernel_without_a_table_runs_all_blocks():
    assert executed_share(replace(ATTENTION, is_masked=False)) == 1.0


@pytest.mark.parametrize(
    ("name", "matmuls"),
    [
        ("splash_mha_fwd", 2),
        ("splash_mha_dq", 3),
        ("splash_mha_dkv", 4),
        ("flash_attention_bwd", 5),
    ],
)
def test_flops_of_attention(name, matmuls):
    call = replace(ATTENTION, name=name)
    assert kernel_flops(call) == matmuls * 2 * 32 * 8192**2 * 128 * 36 / 64


def test_a_kernel_that_makes_all_three_gradients_computes_the_scores_once():
    gradients = (Array("bf16", (8, 32, 8192, 128)), *[Array("bf16", (8, 8192, 128))] * 2)
    call = replace(ATTENTION, name="splash_mha_dkv", results=gradients)
    assert kernel_flops(call) == 5 * 2 * 32 * 8192**2 * 128 * 36 / 64


def test_flops_of_a_grouped_matmul():
    rows, weights = Array("bf16", (4096, 512)), Array("bf16", (8, 512, 1024))
    call = replace(ATTENTION, name="gmm", operands=(rows, weights), is_masked=False)
    assert kernel_flops(call) == 2 * 4096 * 512 * 1024


def test_flops_of_a_grouped_matmuls_weight_gradient():
    left, right = Array("bf16", (512, 4096)), Array("bf16", (4096, 1024))
    call = replace(ATTENTION, name="tgmm", operands=(left, right), is_masked=False)
    assert kernel_flops(call) == 2 * 4096 * 512 * 1024


def test_the_rule_takes_flops_or_bytes_and_says_which():
    by_flops = seconds_by_rule(ATTENTION, V5P)
    flops = kernel_flops(ATTENTION)
    assert flops and by_flops.seconds == pytest.approx(flops / (EFFICIENCY * V5P.peak))
    assert "FLOPs at 50%" in by_flops.how
    other = seconds_by_rule(replace(ATTENTION, name="my_kernel"), V5P)
    assert other.seconds == ATTENTION.moved_bytes / V5P.memory_bandwidth
    assert "bytes over memory bandwidth" in other.how


def test_seconds_are_bundles_times_blocks_over_cores_and_clock():
    schedule = Schedule(bundles=6400, grid=(2, 32, 8, 8))
    blocks = 2 * 32 * 36
    expected = 6400 * blocks / (2 * 1.75e9)
    assert seconds_by_schedule(schedule, ATTENTION, V5P) == pytest.approx(expected)
    one_core = seconds_by_schedule(schedule, ATTENTION, CHIPS["v5e"])
    assert one_core == pytest.approx(6400 * blocks / 1.5e9)


def test_the_kernels_schedule_is_the_longest_of_those_written(tmp_path):
    for name, bundles in (("late", 275), ("kernel", 6397), ("TLP", 187)):
        text = f"\nSchedule analysis:\n\ttotal scheduled bundles:    {bundles}\n"
        (tmp_path / f"1-{name}-71-schedule-analysis_final_bundles.txt").write_text(text)
    assert read_bundles(tmp_path) == 6397


def test_no_schedule_is_an_error(tmp_path):
    with pytest.raises(PlanError, match="wrote no schedule"):
        read_bundles(tmp_path)


@pytest.fixture
def compiles(monkeypatch):
    """Compiles that happened, instead of which a schedule is given."""
    done = []

    def compiled(job, name):
        done.append(name)
        return Schedule(100, (4, 2))

    monkeypatch.setattr(kernel_schedule, "_compiled", compiled)
    monkeypatch.setattr(kernel_schedule, "_libtpu", lambda: "0.0.52")
    return done


def test_a_schedule_is_kept_by_code_arrays_chip_and_version(compiles, tmp_path, monkeypatch):
    folder = str(tmp_path)
    first = schedule_kernel(ATTENTION, V5P, folder=folder)
    # Where it stands in a program, and a name, change nothing.
    moved = replace(ATTENTION, config=ATTENTION.config.replace('"x"', '"y"'), name="other")
    assert schedule_kernel(moved, V5P, folder=folder) == first
    assert len(compiles) == 1
    schedule_kernel(ATTENTION, CHIPS["v5e"], folder=folder)
    schedule_kernel(replace(ATTENTION, operands=ATTENTION.operands[:4]), V5P, folder=folder)
    monkeypatch.setattr(kernel_schedule, "_libtpu", lambda: "0.0.60")
    schedule_kernel(ATTENTION, V5P, folder=folder)
    assert len(compiles) == 4


def test_a_damaged_schedule_is_made_anew(compiles, tmp_path):
    schedule_kernel(ATTENTION, V5P, folder=str(tmp_path))
    (kept,) = tmp_path.glob("*.json")
    kept.write_text('{"bundles": ')
    assert schedule_kernel(ATTENTION, V5P, folder=str(tmp_path)) == Schedule(100, (4, 2))
    assert len(compiles) == 2


def test_a_kernel_that_cannot_be_scheduled_goes_by_the_rule_and_says_why():
    found = scheduled_seconds(replace(ATTENTION, config="{}"), V5P)
    assert found.seconds == seconds_by_rule(ATTENTION, V5P).seconds
    assert "FLOPs at 50% of the peak (not scheduled: the program does not carry" in found.how


@pytest.mark.slow
def test_the_child_says_what_the_compiler_refuses(tmp_path):
    pytest.importorskip("libtpu")
    body = base64.b64encode(b"no kernel").decode()
    call = replace(ATTENTION, config=json.dumps({"custom_call_config": {"body": body}}))
    with pytest.raises(
        PlanError, match="splash_mha_fwd_segmented not scheduled: its compile ended"
    ):
        schedule_kernel(call, V5P, folder=str(tmp_path))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_a_real_kernel_is_scheduled(small_compiled, tmp_path):
    """The forward of the small step's attention: one block a head, of a few thousand bundles."""
    program = parse_program(small_compiled.text)
    calls = [
        kernel_call(instruction, Scope(program, computation))
        for computation in program.computations.values()
        for instruction in computation.instructions
        if is_kernel(instruction)
    ]
    forward = next(call for call in calls if "fwd" in call.name)
    schedule = schedule_kernel(forward, CHIPS["v5e"], folder=str(tmp_path))
    queries = next(array for array in forward.operands if array.dtype == "bf16")
    heads = math.prod(queries.dims[:-2])
    assert math.prod(schedule.grid) == heads  # rows of 256 are one block
    # Two matmuls of 256 × 256 × 128 take at least 2 × 256² × 128 / (4 × 128² a cycle) cycles.
    assert 256 < schedule.bundles < 20_000
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["bundles"] == schedule.bundles
