"""The order of rows: a bijection per epoch, the same for ever, the same at any ordinal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data.order import EpochOrder

sizes = st.one_of(st.integers(1, 70), st.integers(1, 5000))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**40), epoch=st.integers(0, 10**9))
def test_every_epoch_visits_every_row_once(size: int, seed: int, epoch: int) -> None:
    order = EpochOrder(size, seed, "books")
    rows = order(np.arange(size) + epoch * size)
    assert sorted(rows.tolist()) == list(range(size))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(size=sizes, start=st.integers(0, 10**12), data=st.data())
def test_a_row_does_not_depend_on_the_rows_asked_with_it(size: int, start: int, data) -> None:
    order = EpochOrder(size, 5, "web")
    ordinals = np.arange(start, start + 40)
    pick = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=10))
    np.testing.assert_array_equal(order(ordinals)[pick], order(ordinals[pick]))


def test_epochs_sources_and_seeds_have_orders_of_their_own() -> None:
    size = 1000
    first = np.arange(size)
    rows = [
        EpochOrder(size, 0, "a")(first),
        EpochOrder(size, 0, "a")(first + size),
        EpochOrder(size, 0, "b")(first),
        EpochOrder(size, 1, "a")(first),
        first,
    ]
    for i, left in enumerate(rows):
        for right in rows[i + 1 :]:
            assert (left == right).sum() < 12  # two random orders agree on about one row


def test_every_place_is_equally_likely() -> None:
    size, epochs = 7, 14_000
    rows = EpochOrder(size, 3, "a")(np.arange(size * epochs)).reshape(epochs, size)
    for place in range(size):
        shares = np.bincount(rows[:, place], minlength=size) / epochs
        assert np.abs(shares - 1 / size).max() < 0.015  # five standard deviations


def test_neighbours_are_torn_apart() -> None:
    rows = EpochOrder(100_000, 0, "a")(np.arange(100_000))
    assert (np.diff(rows) == 1).sum() < 10
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02


def test_the_order_never_changes_between_versions() -> None:
    """A change here breaks the continuation of every run: raise ORDER_VERSION with it."""
    order = EpochOrder(1_000_003, 7, "books")
    assert order(np.array([0, 1, 2, 1_000_003, 10**12])).tolist() == [
        861283,
        30991,
        116786,
        417568,
        345577,
    ]


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        EpochOrder(0, 0, "a")
