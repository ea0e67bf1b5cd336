"""What the terminal shows of a plan: the verdict first, bars that are full, nothing beyond 100 columns."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.plan.report.parts import memory_parts, time_parts, widths
from maxlm.plan.report.short_shape import short_shape
from maxlm.plan.report.terminal import plan_text, print_plan
from maxlm.plan.report.units import step_seconds
from maxlm.plan.report.verdict import remedies, verdict
from tests.plan.made_plans import ALL, GIB, collective, fitting, memory, operation, too_large

ANSI = re.compile(r"\x1b\[[\d;]*m")


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_100_columns_and_colours_change_no_number(make, colour):
    text = plan_text(make(), colour=colour)
    assert ("\x1b[" in text) == colour
    bare = ANSI.sub("", text)
    assert max(len(line.rstrip()) for line in bare.splitlines()) <= 100
    assert re.findall(r"\d+\.\d+ \w+", bare) == re.findall(r"\d+\.\d+ \w+", plan_text(make()))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_the_verdict_comes_first(make):
    first = " ".join(plan_text(make()).splitlines()[:2])
    fits = make().memory is not None and make().memory.fits
    assert first.startswith("Fits: " if fits else "Does not fit: ")


def test_a_plan_that_fits_says_step_mfu_tokens_days_hours_and_dollars_with_the_prices_source():
    text = plan_text(fitting())
    for word in (
        "3.20 s",
        "58.0%",
        "328k",
        "530 days",
        "814k",
        "$3,420,000",
        "2026-11-01, example",
    ):
        assert word in text, word


def test_without_budget_and_price_nothing_is_invented():
    text = plan_text(ALL["analytic"]())
    assert "no token budget" in text and "no price" in text and "$" not in text


def test_a_plan_that_does_not_fit_says_by_how_much_and_how_many_chips():
    assert "16.0 GiB (16.8%) too much" in verdict(too_large())
    state = memory(parameters=60, optimizer=120, gradients=60, activations=0, temporaries=4)
    told = " ".join(remedies(too_large(memory=state)))
    # (60 + 120 + 60 + 1) GiB on 64 chips are 241 × 64 / 95 = 162.4 chips full of state.
    assert "at least 163 chips (now 64)" in told


def test_fewer_tokens_at_once_is_said_with_the_share_that_would_fit():
    told = " ".join(remedies(too_large()))
    # 95 - (1 + 2 + 1 + 1) = 90 GiB of room for 95 + 11 = 106.
    assert "90.0 GiB" in told and "106.0 GiB" in told and "84.9%" in told


def test_copies_are_split_only_where_there_are_copies():
    assert not any("replica" in line for line in remedies(too_large()))
    split = remedies(too_large(mesh={"replica": 4, "fsdp": 16}))
    assert any(
        "replica 4 holds 4 copies" in line and "3.0 GiB of 4.0 GiB" in line for line in split
    )


@given(
    amounts=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=7),
    spare=st.integers(0, 1 << 40),
    available=st.integers(1, 300),
)
def test_widths_and_what_is_left_fill_the_bar_and_none_is_off_by_more_than_one(
    amounts, spare, available
):
    whole = sum(amounts) + spare
    cells = widths(amounts, whole, available)
    assert min(cells) >= 0 and sum(cells) <= available
    if whole and not spare:
        assert sum(cells) == available
    for cell, amount in zip(cells, amounts, strict=True):
        assert abs(cell - (available * amount / whole if whole else 0)) <= 1


amounts = st.integers(0, 1 << 38)


@settings(max_examples=30)
@given(st.tuples(*[amounts] * 6), st.integers(1 << 20, 1 << 38))
def test_parts_add_up_to_the_whole_and_the_bar_without_colour_is_full(sizes, capacity):
    held = dataclasses.replace(
        memory(),
        **dict(zip([p.name for p in memory_parts(memory())], sizes, strict=True)),
        capacity=capacity,
    )
    assert sum(part.amount for part in memory_parts(held)) == held.total
    bar = plan_text(fitting(memory=held)).split("Memory per device")[1].splitlines()[1]
    assert len(bar.strip()) == 96
    time = fitting().time
    assert sum(part.amount for part in time_parts(time)) == pytest.approx(time.total)


def test_collectives_are_grouped_by_kind_axes_and_overlap():
    text = plan_text(fitting())
    rows = [line.split() for line in text.splitlines() if line.startswith("  all-")]
    assert [row[0] for row in rows] == ["all-reduce", "all-gather"]
    assert rows[0][3:5] == ["128", "29.600"] and "blocking" in rows[0]
    assert rows[1][3:5] == ["64", "29.000"] and "overlapped" in rows[1]


def test_many_axes_long_names_and_control_characters_stay_on_their_lines():
    evil = operation("a" * 300 + "\x1b[31m[bold]", source="/very/" * 40 + "x.py:1")
    wide = collective("c", "all-reduce", ("replica", "stage", "fsdp", "context", "expert"))
    text = plan_text(fitting(operations=[evil], collectives=[wide], notes=["[red]\x07 note"]))
    assert max(map(len, text.splitlines())) <= 100
    assert "14.800" in text and "0.082 s" in text and "blocking" in text and "0.400 s" in text
    assert "x.py:1" in text.replace("\n", "").replace(" ", "")
    assert "\x1b" not in text and "\x07" not in text and "[red]" in text


def test_a_stream_that_is_no_terminal_gets_no_colours():
    stream = io.StringIO()
    print_plan(fitting(), stream)
    assert stream.getvalue() == plan_text(fitting())


def test_a_terminal_of_ascii_only_gets_question_marks_and_no_error():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_plan(fitting(), stream)
    stream.flush()
    assert b"Fits: 56.0 GiB" in raw.getvalue()


def test_host_memory_and_bubble_are_told_where_there_are_any():
    assert "in the host's memory" not in plan_text(fitting())
    time = dataclasses.replace(fitting().time, bubble=0.4)
    text = plan_text(fitting(memory=memory(host=7), time=time))
    assert "7.0 GiB in the host's memory" in text and "0.400 s of it pipeline bubble" in text


@pytest.mark.parametrize(
    ("shape", "short"),
    [
        ("bf16[2,8192]{1,0:T(8,128)(2,1)S(1)}", "bf16[2,8192]"),
        ("(f32[8]{0}, s32[])", "(f32[8], s32[])"),
        ("pred[3]", "pred[3]"),
        ("}{", "}"),
        ("", ""),
    ],
)
def test_shapes_are_shown_without_their_layout(shape, short):
    assert short_shape(shape) == short


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0 s"), (8.2e-6, "8.2 µs"), (4.312e-3, "4.31 ms"), (0.0823, "0.082 s"),
        (3.168, "3.17 s"), (75.0, "1 min 15 s"), (None, "–"),
    ],
)  # fmt: skip
def test_seconds_have_the_unit_that_reads_best(seconds, told):
    assert step_seconds(seconds) == told


def test_gib_is_of_1024():
    assert f"{memory().total / GIB:.1f} GiB" in plan_text(fitting())


def test_copies_of_the_state_are_not_spread():
    """Of 64 chips 16 hold one copy: 200 GiB each, over 95 GiB, take 34 chips and not 135."""
    state = memory(parameters=60, optimizer=120, gradients=20, other=0)
    told = " ".join(remedies(too_large(memory=state, mesh={"replica": 4, "fsdp": 16})))
    assert "at least 34 chips" in told
    assert "Parameters, optimizer and gradients alone take 200.0 GiB" in told


def test_gradients_that_are_not_known_are_not_counted_in_words():
    state = memory(parameters=60, optimizer=120, gradients=0, other=0)
    assert "Parameters and optimizer alone take 180.0 GiB" in " ".join(
        remedies(too_large(memory=state))
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "train.accumulation 2 times as large, or so much smaller a batch"),
        (4, "train.accumulation 2 times as large, or so much smaller a batch"),
        (7, "train.accumulation 7 times as large, or so much smaller a batch"),
        (1, "there is one row at once already, so shorter rows, or both parallel.context"),
    ],
)
def test_no_micro_batch_is_smaller_than_a_row(rows, said):
    assert said in " ".join(remedies(too_large(rows_at_once=rows)))


def test_beyond_one_row_at_once_rows_are_cut():
    """15 GiB of room for 106 of activations and temporaries: 8 times fewer tokens."""
    full = memory(parameters=30, optimizer=30, gradients=19, activations=95)
    told = " ".join(remedies(too_large(memory=full, rows_at_once=4)))
    assert "train.accumulation 4 times as large leaves one row at once; beyond that" in told
    assert "and train.accumulation 2 times as large" in told


def test_more_chips_are_asked_for_only_where_they_are_more():
    full = memory(parameters=30, optimizer=30, gradients=20, activations=20)
    assert "More chips" in " ".join(remedies(too_large(memory=full)))
    copied = too_large(memory=full, mesh={"replica": 4, "fsdp": 16})
    assert "More chips" not in " ".join(remedies(copied))
