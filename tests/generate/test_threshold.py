"""Thresholds found bit by bit are those of a sort."""

import numpy as np
import pytest

from maxlm.generate.threshold import kth_largest, smallest_of_mass

RNG = np.random.default_rng(0)
ROWS = {
    "normal": RNG.normal(size=(3, 1000)).astype(np.float32),
    "many magnitudes": (
        RNG.normal(size=(3, 1000)) * 10.0 ** RNG.integers(-30, 30, (3, 1000))
    ).astype(np.float32),
    "ties": RNG.integers(-2, 3, (3, 50)).astype(np.float32),
    "the lowest": np.full((3, 7), np.finfo(np.float32).min),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_kth_largest_is_that_of_a_sort(name):
    values = ROWS[name]
    ordered = -np.sort(-values, -1)
    k = np.array([1, 5, values.shape[1] + 9])
    found = np.asarray(kth_largest(values, k))
    wanted = [ordered[row, min(n, values.shape[1]) - 1] for row, n in enumerate(k)]
    np.testing.assert_array_equal(found[:, 0], wanted)


def test_the_fewest_shares_that_reach_a_mass():
    shares = RNG.dirichlet(np.full(200, 0.3), 4).astype(np.float32)
    mass = np.array([0.01, 0.5, 0.9, 0.999], np.float32)
    found = np.asarray(smallest_of_mass(shares, mass))[:, 0]
    for row, wanted, threshold in zip(shares.astype(np.float64), mass, found, strict=True):
        kept = row[row >= threshold]
        assert kept.sum() >= wanted - 1e-6 > kept.sum() - kept.min() - 2e-6


def test_a_mass_that_rounding_does_not_reach_keeps_all():
    shares = np.full((1, 3), 0.3, np.float32)
    assert smallest_of_mass(shares, np.ones(1, np.float32)).tolist() == [[0]]
