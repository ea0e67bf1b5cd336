"""Temperature, top-k and top-p draw what they should, as often as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.errors import ConfigError
from maxlm.generate.sampling import SamplingOptions, sample

DRAWS = 20_000
PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.25, 0.15, 0.1, 0.03])  # likeliest: 1, 3, 4, 5, 0, 6, 2


def shares(options, probabilities=PROBABILITIES, seed=0):
    """How often each token is drawn."""
    logits = jnp.broadcast_to(jnp.log(probabilities), (DRAWS, len(probabilities)))
    drawn = sample(jax.random.key(seed), logits.astype(jnp.float32), options)
    assert drawn.shape == (DRAWS,) and drawn.dtype == jnp.int32
    return np.bincount(drawn, minlength=len(probabilities)) / DRAWS


def assert_shares(found, wanted):
    """Within five standard deviations, and 0 where it is 0."""
    wanted = wanted / wanted.sum()
    assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / DRAWS)).all(), found


def only(*tokens):
    kept = np.zeros_like(PROBABILITIES)
    kept[list(tokens)] = PROBABILITIES[list(tokens)]
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature):
    found = shares(SamplingOptions(temperature))
    assert_shares(found, PROBABILITIES ** (1 / temperature))


def test_temperature_zero_takes_the_likeliest():
    found = shares(SamplingOptions(temperature=0, top_k=3, top_p=0.5))
    assert found.tolist() == [0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("k", "kept"),
    [(1, [1]), (2, [1, 3]), (4, [1, 3, 4, 5]), (7, range(7)), (100, range(7)), (None, range(7))],
)
def test_top_k_keeps_the_k_likeliest_in_their_proportions(k, kept):
    assert_shares(shares(SamplingOptions(top_k=k)), only(*kept))


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.01, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),  # 0.4 alone has not reached it
        (0.64, [1, 3]),
        (0.66, [1, 3, 4]),
        (0.96, [1, 3, 4, 5, 0, 6]),
        (1.0, range(7)),
    ],
)
def test_top_p_keeps_the_fewest_likeliest_that_reach_p(p, kept):
    assert_shares(shares(SamplingOptions(top_p=p)), only(*kept))


def test_top_p_counts_what_temperature_and_top_k_leave():
    # Of three tokens the shares are 0.5, 0.31 and 0.19: two of them reach 0.8.
    assert_shares(shares(SamplingOptions(top_k=3, top_p=0.8)), only(1, 3))
    # All three would be needed of seven.
    assert_shares(shares(SamplingOptions(top_p=0.79)), only(1, 3, 4))
    # Squared, 0.63 and 0.25 are the largest shares.
    cold = shares(SamplingOptions(temperature=0.5, top_p=0.8))
    assert_shares(cold, only(1, 3) ** 2)


def test_every_row_is_cut_by_its_own_probabilities():
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.24, 0.26, 0.3, 0.2]])
    logits = jnp.log(jnp.asarray(np.repeat(probabilities, 400, 0), jnp.float32))
    for options in (SamplingOptions(top_p=0.5), SamplingOptions(top_k=2, top_p=0.6)):
        drawn = np.asarray(sample(jax.random.key(1), logits, options)).reshape(3, 400)
        assert [set(row.tolist()) for row in drawn] == [{0}, {3}, {1, 2}]


def test_a_key_repeats():
    options = SamplingOptions(temperature=1.3, top_p=0.9)
    assert (shares(options, seed=2) == shares(options, seed=2)).all()
    assert (shares(options, seed=2) != shares(options, seed=3)).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
    ids=str,
)
def test_what_chooses_nothing_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is"):
        SamplingOptions(**wrong)


def test_the_smallest_temperature_and_share_draw_the_likeliest():
    logits = jnp.array([[3.0, 1.0, 3.5, -2.0]])
    for options in (SamplingOptions(temperature=1e-6), SamplingOptions(top_p=1e-6)):
        for seed in range(5):
            assert int(sample(jax.random.key(seed), logits, options)[0]) == 2
