"""Mixtures: counts stay within a proved constant of the weights, over any window, anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data.mixture import MAX_DEVIATION, Mixture
from maxlm.errors import ConfigError

weight_lists = st.lists(
    st.one_of(st.floats(1e-3, 1e3), st.integers(1, 50).map(float)), min_size=1, max_size=12
)


def named(weights: list[float]) -> dict[str, float]:
    return {f"source{i:02}": weight for i, weight in enumerate(weights)}


@settings(derandomize=True, max_examples=60, deadline=None)
@given(weights=weight_lists, start=st.integers(0, 10**12), data=st.data())
def test_any_window_holds_its_share_of_every_source(weights, start: int, data) -> None:
    mixture = Mixture(named(weights))
    sources, _ = mixture.split(np.arange(start, start + 3000))
    begin = data.draw(st.integers(0, 2999))
    for end in (begin + 1, (begin + 3000) // 2, 3000):
        counts = np.bincount(sources[begin:end], minlength=len(mixture.names))
        for name, count in zip(mixture.names, counts, strict=True):
            ideal = mixture.shares[name] * (end - begin)
            bound = 1 if len(mixture.names) == 2 else MAX_DEVIATION
            assert abs(count - ideal) < bound + 1e-6


@settings(derandomize=True, max_examples=60, deadline=None)
@given(weights=weight_lists, start=st.integers(0, 10**12))
def test_ordinals_of_each_source_count_up_by_one_from_its_count(weights, start: int) -> None:
    mixture = Mixture(named(weights))
    sources, ordinals = mixture.split(np.arange(start, start + 500))
    before, after = mixture.counts(start), mixture.counts(start + 500)
    for number, name in enumerate(mixture.names):
        mine = ordinals[sources == number]
        assert mine.tolist() == list(range(before[name], after[name]))
    assert sum(before.values()) == start


def test_long_counts_do_not_drift() -> None:
    mixture = Mixture({"a": 0.3, "b": 0.6, "c": 0.1})
    counts = mixture.counts(10**15)
    for name, share in {"a": 3, "b": 6, "c": 1}.items():
        assert abs(counts[name] - share * 10**14) < MAX_DEVIATION


def test_scale_and_order_of_weights_do_not_matter() -> None:
    left, right = Mixture({"a": 0.3, "b": 0.6}), Mixture({"b": 6, "a": 3})
    for a, b in zip(left.split(np.arange(99)), right.split(np.arange(99)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_sources_alternate() -> None:
    sources, _ = Mixture({"a": 1, "b": 1}).split(np.arange(20))
    assert (np.diff(sources) != 0).all()


def test_weight_zero_leaves_a_source_out() -> None:
    mixture = Mixture({"a": 0, "b": 2})
    assert mixture.names == ("b",)
    assert mixture.counts(10) == {"b": 10}


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight of source 'b'"):
        Mixture({"a": 1, "b": weight})


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights of all 2 sources are 0"):
        Mixture({"a": 0, "b": 0})
