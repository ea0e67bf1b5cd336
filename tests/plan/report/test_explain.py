"""What a plan says in words: each sentence appears where the figures support it, with their values."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.parallel.chips import CHIPS
from maxlm.plan.report.explain import explain
from maxlm.plan.report.gains import gains
from maxlm.plan.result import StepTime
from tests.plan.made_plans import (
    ALL,
    REMAT,
    collective,
    fitting,
    memory,
    operation,
    refused,
    too_large,
)

V5P = CHIPS["v5p"]


def told(plan, chip=V5P) -> str:
    return "\n".join(explain(plan, chip))


def time(**other) -> StepTime:
    return dataclasses.replace(fitting().time, **other)


def test_a_step_of_matmuls_is_bound_by_compute():
    assert explain(fitting(), V5P)[0] == (
        "The step is bound by compute: 2.65 s of 3.20 s (82.8%), 2.20 s of matmuls and 0.450 s of "
        "kernels."
    )


def test_a_step_of_elementwise_work_is_bound_by_memory():
    first = explain(fitting(time=time(elementwise=5.0)), V5P)[0]
    assert "bound by v5p's memory: 5.00 s" in first


def test_a_step_of_collectives_names_the_kind_the_axis_and_the_wire():
    slow = fitting(
        time=time(blocking=6.0), collectives=[collective("a", "all-reduce", seconds=6.0)]
    )
    assert "communication" in explain(slow, V5P)[0]
    assert "all-reduce over fsdp by links along 3 axes of 180 GB/s" in explain(slow, V5P)[0]
    across = collective("a", "all-reduce", ("replica",), seconds=6.0, network=True)
    slow = dataclasses.replace(slow, collectives=[across])
    assert "over the network of" in explain(slow, V5P)[0]


def test_the_ridge_is_peak_over_bandwidth():
    text = told(fitting())
    assert f"= {V5P.peak / V5P.memory_bandwidth:,.0f} FLOPs per byte" in text
    # 1 + 2 + 1 + 40 GiB, read and written once.
    flops = fitting().model_flops / 64
    assert f"at most {flops / (2 * 44 * 2**30):,.0f} model FLOPs per byte: compute" in text
    wire = 29e9 + 2 * 14.8e9
    assert f"Link roofline: {flops / wire:,.0f} model FLOPs per byte" in text
    assert "Network roofline" not in text


def test_a_small_batch_is_left_of_the_ridge():
    assert "memory bounds it" in told(fitting(model_flops=1e12))


def test_hiding_blocking_collectives_brings_their_share():
    assert "Hiding the 0.200 s of blocking all-reduce over fsdp would bring 6.2%" in told(fitting())
    hidden = [dataclasses.replace(c, is_overlapped=True) for c in fitting().collectives]
    assert "blocking" not in told(fitting(collectives=hidden, time=time(blocking=0.0)))


def test_recomputation_is_saved_only_where_the_memory_is_free():
    saving = (
        "saving fusion.2 of mlp.py:41 (bf16[2,8192,14336], 32 times) would take at most 14.0 GiB"
    )
    assert saving in told(fitting())
    assert saving not in told(fitting(memory=memory(activations=70)))


def test_the_free_memory_is_given_away_once():
    twice = [operation(f"f{i}", seconds=0.4, module=REMAT) for i in range(3)]
    text = told(fitting(operations=twice))  # 14 GiB each, 39 free
    assert text.count("would take at most 14.0 GiB") == 2
    assert "keeps 25.0 GiB free" in text


def test_twice_the_batch_is_offered_only_where_it_fits_and_for_parameter_axes():
    small = fitting(memory=memory(activations=20))
    assert "Twice the batch would fit" in told(small)
    assert "Twice the batch" not in told(fitting(memory=memory(activations=45)))
    tensor = [collective("a", "all-reduce", ("tensor",), seconds=0.2)]
    assert "Twice the batch" not in told(dataclasses.replace(small, collectives=tensor))


def test_a_bubble_is_halved_by_twice_the_microbatches():
    plan = fitting(mesh={"stage": 4, "fsdp": 16}, time=time(bubble=0.4))
    assert "bubble of 0.400 s (12.5%) over 4 stages and bring 6.2%" in told(plan)
    assert "bubble" not in told(fitting())


def test_what_has_no_estimate_is_said_with_its_seconds():
    assert "1 of the operations, 0.030 s (0.9%)" in told(fitting())
    assert "no estimate" not in told(fitting(method="analytic"))


def test_together_names_only_what_adds_up():
    # 3.20 - 0.4 (recomputation) - 0.2 (blocking) - 0.05 (exposed); elementwise is an upper bound.
    assert "2.55 s a step, 72.8% MFU" in told(fitting())


def test_what_does_not_fit_gets_remedies_and_no_speed():
    lines = explain(too_large(), V5P)
    assert lines[0].startswith("Does not fit") and any("Fewer tokens" in line for line in lines)
    assert len(explain(refused(), V5P)) == 1


def test_chips_of_two_devices_share_the_flops():
    chip = CHIPS["tpu7x"]
    ideal = fitting().model_flops / 128 / chip.peak
    assert f"would take {ideal:.3f} s" in told(fitting(), chip)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_every_plan_can_be_explained_on_every_chip(make, chip):
    lines = explain(make(), CHIPS[chip])
    assert lines and all(line.strip() and line.endswith(".") for line in lines)


seconds = st.floats(0, 100)


@settings(max_examples=50)
@given(st.tuples(seconds, seconds, seconds, seconds, seconds), st.floats(0, 1))
def test_gains_are_sorted_worth_it_and_explained_for_any_times(parts, shown):
    matmuls, elementwise, kernels, blocking, overlapped = parts
    plan = fitting(
        time=StepTime(matmuls, elementwise, kernels, blocking, overlapped, shown * overlapped)
    )
    found = [gain.seconds for gain in gains(plan)]
    assert found == sorted(found, reverse=True)
    assert all(gain >= 0.005 * plan.time.total for gain in found)
    assert explain(plan, V5P)
