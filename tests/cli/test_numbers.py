"""Numbers on the command line."""

from __future__ import annotations

import argparse

import pytest

from maxlm.cli.numbers import positive, whole


def test_numbers_are_read():
    assert whole("10e9") == 10_000_000_000
    assert whole("1_000") == 1000
    assert positive("0.5") == 0.5


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "nan", "inf", "many"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no"):
        whole(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_what_is_not_above_0_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no"):
        positive(text)
