"""Phases: durations become whole steps, and step, cursor and tokens lead to each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.config.schema import DataConfig, parse_duration
from maxlm.data.phases import Timeline, build_timeline
from maxlm.errors import ConfigError, DataError


def timeline(
    phases: list[dict], total: str | None = None, batch_size: int = 8, rows=None
) -> Timeline:
    data = DataConfig.model_validate(
        {"mixture": {"books": {"store": "b"}, "web": {"store": "w", "weight": 3}}, "phases": phases}
    )
    return build_timeline(
        data, batch_size=batch_size, total=parse_duration(total), rows_per_epoch=rows
    )


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 50), st.integers(2, 64), st.integers(1, 9)), min_size=1, max_size=4
    )
)
def test_every_step_leads_to_its_cursor_and_back(shapes) -> None:
    line = timeline(
        [{"duration": f"{n} steps", "length": t, "batch_size": b} for n, t, b in shapes]
    )
    cursor = tokens = 0
    for step in range(line.total_steps):
        at = line.at_step(step)
        assert (at.cursor, at.tokens_before) == (cursor, tokens)
        assert line.at_cursor(cursor) == at
        first, last = line.phase_at(cursor), line.phase_at(cursor + at.batch_size - 1)
        assert first is last and first.index == at.phase
        assert line.steps(parse_duration(f"{cursor} examples")) == step
        assert line.steps(parse_duration(f"{tokens + 1} tokens")) == step + 1
        cursor, tokens = cursor + at.batch_size, tokens + at.tokens
    assert (cursor, tokens) == (line.total_examples, line.total_tokens)
    for step in range(line.total_steps):
        left = line.total_tokens - line.at_step(step).tokens_before
        assert line.steps(parse_duration(f"{left} tokens"), after=step) == line.total_steps - step
    assert line.at_cursor(cursor).step == line.total_steps


def test_durations_round_up_to_whole_steps_of_their_phase() -> None:
    line = timeline(
        [
            {"duration": "1000 tokens", "length": 32},  # 256 tokens a step
            {"duration": "17 examples", "length": 64, "batch_size": 4},
            {"duration": "2 epochs", "length": 64},
            {"length": 128},
        ],
        total="100k tokens",
        rows=lambda weights, length: 50,
    )
    assert [phase.num_steps for phase in line.phases] == [4, 5, 13, 89]
    assert line.total_tokens == 1024 + 5 * 256 + 13 * 512 + 89 * 1024


def test_epochs_are_counted_phase_by_phase() -> None:
    line = timeline(
        [{"duration": "5 steps", "length": 10}, {"length": 20}],
        total="2.5 epochs",
        rows=lambda weights, length: 800 // length,  # 40 / 80 of an epoch, then 2 of 40 rows
    )
    assert [phase.num_steps for phase in line.phases] == [5, 10]
    assert line.steps(parse_duration("1 epoch")) == 8
    assert line.steps(parse_duration("0.1 epochs")) == 1


def test_weights_that_a_phase_does_not_name_stay_as_they_are() -> None:
    line = timeline([{"duration": "1 step", "weights": {"books": 0}}, {}], total="2 steps")
    assert [dict(phase.weights) for phase in line.phases] == [
        {"books": 0, "web": 3},
        {"books": 1, "web": 3},
    ]


@pytest.mark.parametrize(
    ("phases", "total", "message"),
    [
        ([{"weights": {"boks": 1}}], "5 steps", r"phases\[0\].weights.*did you mean 'books'"),
        ([{}, {"duration": "5 steps"}], "9 steps", r"phases\[0\].duration is open"),
        ([{"duration": "9 steps"}, {}], "9 steps", r"phases\[1\] has no steps.*take already"),
        ([{"duration": "5 steps"}], "9 steps", r"make up 5 = 5 steps: leave the last"),
        ([{}], None, "nothing says how long"),
        ([], None, "nothing says how long"),
        ([], "3 epochs", "before the data is known"),
    ],
)
def test_phases_that_make_no_timeline_are_refused(phases, total, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timeline(phases, total)


def test_a_cursor_between_two_steps_or_outside_is_refused() -> None:
    line = timeline([], total="10 steps")
    with pytest.raises(DataError, match=r"no step starts at cursor 12.*8 examples a step"):
        line.at_cursor(12)
    with pytest.raises(DataError, match="no step starts at cursor 88"):
        line.at_cursor(88)
    with pytest.raises(DataError, match="step 11 is outside the run, which has 10"):
        line.at_step(11)
    with pytest.raises(DataError, match="cursor 80 is outside"):
        line.phase_at(80)
