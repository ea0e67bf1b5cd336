"""Durations are read, written and counted in steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.config.duration import Duration, DurationUnit, parse_duration, to_steps
from maxlm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (500, "500 steps"),
        ("500", "500 steps"),
        ("1 step", "1 steps"),
        ("2.5B tokens", "2500000000 tokens"),
        ("10k Examples", "10000 examples"),
        ("1_000 steps", "1000 steps"),
        ("1e-3 epochs", "0.001 epochs"),
        (1e16, "10000000000000000 steps"),
        ("3epochs", "3 epochs"),
    ],
)
def test_a_duration_is_read_in_any_unit(text, expected):
    assert str(parse_duration(text)) == expected


@pytest.mark.parametrize("text", ["", "steps", "5 parsecs", "-1 steps", "nan", "1e999", True, [1]])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["160B", "10k", "2.5m"])
def test_a_scale_without_a_unit_is_refused(text):
    """160B would else be 160 billion steps, and its author meant tokens."""
    with pytest.raises(ValueError, match=f"'{text}' has no unit: write {text} tokens, steps"):
        parse_duration(text)


@settings(derandomize=True, deadline=None)
@given(st.floats(min_value=0, max_value=1e18, allow_nan=False), st.sampled_from(list(DurationUnit)))
def test_a_written_duration_reads_the_same(amount, unit):
    duration = Duration(amount=amount, unit=unit)
    assert parse_duration(str(duration)) == duration


def test_steps_cover_the_duration():
    def steps(text):
        return to_steps(
            parse_duration(text), tokens_per_step=64, examples_per_step=8, tokens_per_epoch=1000
        )

    assert steps("5 steps") == 5
    assert steps("17 examples") == 3
    assert steps("129 tokens") == 3
    assert steps("2 epochs") == 32
    assert steps("0 steps") == 0


def test_an_amount_that_is_a_hair_above_whole_takes_no_extra_step():
    duration = Duration(amount=3 * 0.1 * 640, unit=DurationUnit.TOKENS)  # 192.00000000000003
    assert to_steps(duration, tokens_per_step=64, examples_per_step=1) == 3


def test_epochs_need_the_data():
    with pytest.raises(ConfigError, match="before the data is known"):
        to_steps(parse_duration("1 epoch"), tokens_per_step=1, examples_per_step=1)
