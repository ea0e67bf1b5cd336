"""Weak scaling: the table of plans and what makes a step longer."""

from __future__ import annotations

import dataclasses

from maxlm.plan.report.scaling import scaling_table, what_bends
from tests.plan.made_plans import collective, fitting, too_large


def larger(**times):
    time = dataclasses.replace(fitting().time, **times)
    return fitting(
        topology="v5p-256",
        chips=128,
        tokens_per_step=2 * fitting().tokens_per_step,
        time=time,
        collectives=[
            *fitting().collectives,
            collective("r", "all-reduce", ("replica",), seconds=0.4, network=True),
        ],
    )


def test_a_row_tells_chips_communication_and_efficiency():
    rows = scaling_table([fitting(), larger(blocking=0.6)]).splitlines()
    cells = [cell.strip() for cell in rows[3].strip("|").split("|")]
    assert cells[:2] == ["v5p-256", "128"]
    assert cells[3:6] == ["3.60 s", "0.650 s", "0.450 s"]
    assert cells[8] == "88.9%"  # 3.2 / 3.6


def test_the_bend_is_named_by_kind_and_by_collective():
    (line,) = what_bends([fitting(), larger(blocking=0.6)])
    assert "0.400 s (12.5%) longer than v5p-128" in line
    assert "blocking +0.400 s" in line and "matmuls" not in line
    assert "all-reduce over replica between slices changed most, +0.400 s on the wire" in line


def test_a_straight_curve_is_called_straight():
    (line,) = what_bends([fitting(), larger()])
    assert line == "v5p-256: as v5p-128, within 0.5% a token."


def test_fewer_tokens_a_chip_are_compared_per_token():
    half = dataclasses.replace(larger(), tokens_per_step=fitting().tokens_per_step)
    (line,) = what_bends([fitting(), half])
    assert "3.20 s (100.0%) longer" in line


def test_what_does_not_fit_has_a_row_and_no_curve():
    plans = [fitting(), too_large(topology="v5p-32")]
    assert "(does not fit)" in scaling_table(plans)
    assert what_bends(plans) == ["v5p-32: not known, because one of the two does not fit."]
