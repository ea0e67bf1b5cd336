"""Slices that do not close to rings: a plan says what that may cost."""

from __future__ import annotations

import pytest

from maxlm.plan.edges import edge_notes
from maxlm.plan.topology import parse_topology
from tests.plan.made_plans import collective

BLOCKING = collective("a", "all-gather", seconds=0.1625)
HIDDEN = collective("b", "all-gather", seconds=9.0, is_overlapped=True)
NETWORK = collective("c", "all-reduce", seconds=9.0, network=True)


@pytest.mark.parametrize("name", ["v5e-64", "v5p-32", "v6e-128", "v5e-4"])
def test_what_blocks_may_take_twice_as_long(name):
    (note,) = edge_notes(parse_topology(name), [BLOCKING, HIDDEN, NETWORK])
    assert "up to 0.163 s more" in note


@pytest.mark.parametrize("name", ["v5p-128", "v5e-256", "2xv5p-128", "h100x8", "v5p-2"])
def test_a_torus_has_no_edges(name):
    assert edge_notes(parse_topology(name), [BLOCKING]) == []


def test_what_hides_or_crosses_the_network_counts_nothing():
    assert edge_notes(parse_topology("v5e-64"), [HIDDEN, NETWORK]) == []
