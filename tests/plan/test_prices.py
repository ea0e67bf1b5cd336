"""Prices carry their date and source, and a run's cost follows from its tokens and speed."""

from __future__ import annotations

import re

import pytest
import yaml

from maxlm.config.presets import preset_folders, preset_names
from maxlm.errors import ConfigError
from maxlm.parallel.chips import CHIPS
from maxlm.plan.prices import Price, cost_of, price_of

PRICE = Price(2.0, "somewhere", "2026-01-01", "https://example.org")


def test_every_price_has_a_date_and_a_source():
    data = yaml.safe_load((preset_folders()[0] / "prices.yaml").read_text())
    assert set(data) <= set(CHIPS) and data
    for chip in data:
        price = price_of(chip)
        assert price.dollars > 0 and price.source.startswith("https://")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", price.date)
        assert price.date in str(price) and price.source in str(price)


def test_prices_are_no_preset():
    assert not any("prices" in name for name in preset_names())


def test_a_chip_without_a_traceable_price_has_none():
    assert price_of("tpu7x") is None


def test_a_users_file_wins(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("v5p: {dollars: 1.5, where: ours, date: 2026-01-02, source: contract}\n")
    assert price_of("v5p", str(file)) == Price(1.5, "ours", "2026-01-02", "contract")
    assert price_of("v5e", str(file)) == price_of("v5e")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5q: {dollars: 1, where: a, date: b, source: c}", "did you mean 'v5p'"),
        ("v5p: {dollars: 0, where: a, date: b, source: c}", "above 0"),
        ("v5p: {dollars: .nan, where: a, date: b, source: c}", "a number above 0, not nan"),
        ("v5p: {dollars: .inf, where: a, date: b, source: c}", "a number above 0, not inf"),
        ("v5p: {dollars: 1}", "expected exactly dollars, where, date, source"),
        ("- v5p", "expected chips"),
        ("v5p:\n  dollars: [", "p.yaml:2: not YAML: expected"),
    ],
)
def test_a_file_that_is_no_price_list_is_refused(tmp_path, text, said):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        price_of("v5p", str(file))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        price_of("v5p", str(tmp_path / "none.yaml"))


def test_cost_is_tokens_over_speed_times_chips():
    cost = cost_of(86_400e6, 1e6, 64, PRICE)
    assert cost.days == 1.0 and cost.chip_hours == 24 * 64 and cost.dollars == 24 * 64 * 2
    assert "$2.00 a chip and hour" in cost.price


def test_without_a_price_or_a_speed_there_is_no_sum():
    assert cost_of(1e9, 1e6, 4, None).dollars is None
    assert cost_of(1e9, 1e6, 4, None).chip_hours is not None
    assert cost_of(1e9, None, 4, PRICE).days is None
    assert cost_of(None, 1e6, 4, PRICE).chip_hours is None
