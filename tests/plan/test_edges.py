"""Slices that do not close to rings: a plan says what that may cost."""

from __future__ import annotations

import pytest

from maxlm.plan.edges import edge_notes
from maxlm.plan.topology import parse_topology
from tests.plan.made_plans import collective

BLOCKING = collective("a", "all-gather", seconds=0.2)
HIDDEN = collective("b", "all-gather", seconds=9.0, is_overlapped=True)
NETWORK = collective("c", "all-reduce", seconds=9.0, network=True)


@pytest.mark.parametrize(
    ("name", "links", "more"),
    [
        ("v5e-64", "with 4 links of a chip, and a chip at its corner has 2", 0.2),
        ("v5e-4", "with 4 links of a chip, and a chip at its corner has 2", 0.2),
        ("v6e-128", "has 3", 0.2 / 3),  # 8×16, of which the longer side closes
        ("v5p-32", "with 6 links of a chip, and a chip at its corner has 3", 0.2),
        ("v5p-8", "has 2", 0.4),  # 2×2×1
        ("2xv5e-64", "has 2", 0.2),
    ],
)
def test_a_chip_at_a_corner_has_fewer_links(name, links, more):
    (note,) = edge_notes(parse_topology(name), [BLOCKING, HIDDEN, NETWORK])
    assert links in note and f"about {more:.3g} s more" in note


@pytest.mark.parametrize("name", ["v5p-128", "v5e-256", "2xv5p-128", "h100x8", "v5p-2"])
def test_a_torus_has_no_edges(name):
    assert edge_notes(parse_topology(name), [BLOCKING]) == []


def test_what_hides_or_crosses_the_network_counts_nothing():
    assert edge_notes(parse_topology("v5e-64"), [HIDDEN, NETWORK]) == []
