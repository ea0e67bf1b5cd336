"""Temperature, top-k, top-p, min-p and penalties draw what they should, as often as they should."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.errors import ConfigError
from maxlm.generate.rows import row_options
from maxlm.generate.sampling import Past, SamplingOptions, Steps, sample

DRAWS = 20_000
PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.25, 0.15, 0.1, 0.03])  # likeliest: 1, 3, 4, 5, 0, 6, 2


def draw(options, logits, seed=0):
    """A token for each row `[B, V]`, the rows' draws following each other."""
    rows = [replace(options, seed=seed)] * len(logits)
    index = jnp.arange(len(logits))
    program = jax.jit(sample, static_argnames="steps")
    return program(logits, row_options(rows), index, steps=Steps.of(rows)).token


def shares(options, probabilities=PROBABILITIES, seed=0):
    """How often each token is drawn."""
    logits = jnp.broadcast_to(jnp.log(probabilities), (DRAWS, len(probabilities)))
    drawn = draw(options, logits.astype(jnp.float32), seed)
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
        drawn = np.asarray(draw(options, logits, seed=1)).reshape(3, 400)
        assert [set(row.tolist()) for row in drawn] == [{0}, {3}, {1, 2}]


@pytest.mark.parametrize(("p", "kept"), [(0.0, range(7)), (0.2, [1, 3, 4, 5]), (1.0, [1])])
def test_min_p_keeps_tokens_by_their_share_of_the_likeliest(p, kept):
    assert_shares(shares(SamplingOptions(min_p=p)), only(*kept))


def test_rows_of_a_batch_are_each_chosen_in_their_own_way():
    ways = [
        SamplingOptions(temperature=0),
        SamplingOptions(top_k=2),
        SamplingOptions(top_p=0.64),
        SamplingOptions(min_p=0.5),
        SamplingOptions(),
    ]
    rows = [way for way in ways for _ in range(2000)]
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (len(rows), 7)).astype(jnp.float32)
    drawn = sample(logits, row_options(rows), jnp.arange(len(rows)), Steps.of(rows)).token
    kinds = [set(part.tolist()) for part in np.asarray(drawn).reshape(5, -1)]
    assert kinds == [{1}, {1, 3}, {1, 3}, {1, 3}, set(range(7))]


def test_a_bias_forbids_a_token_and_commands_another():
    logits = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]
    rows = row_options([SamplingOptions(temperature=0)])
    for bias, wanted in (({1: -100.0}, 3), ({2: 100.0}, 2)):
        added = np.zeros((1, 7), np.float32)
        for token, value in bias.items():
            added[0, token] = value
        assert int(sample(logits, rows, jnp.zeros(1), Steps(), bias=added).token[0]) == wanted


def test_penalties_take_off_what_they_say():
    """By hand: of logits 2, -1 and 1, the first two seen, the second drawn twice."""
    logits = jnp.array([[2.0, -1.0, 1.0]])
    past = Past(jnp.array([[True, False, False]]), jnp.array([[0, 2, 0]]))
    options = SamplingOptions(
        temperature=0,
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logprobs=0,
    )

    def chosen(extra):
        """Whether the third token, its logit raised by `extra`, beats the others."""
        raised = logits.at[0, 2].add(extra)
        return int(
            sample(raised, row_options([options]), jnp.zeros(1), Steps(), past=past).token[0]
        )

    assert (chosen(-0.01), chosen(0.01)) == (0, 2)  # 2 / 2 against 1
    past = past._replace(prompt=jnp.zeros((1, 3), bool))
    logits = jnp.array([[-9.0, -1.0, -3.25]])  # -1 × 2 - 0.25 - 2 × 0.5
    assert (chosen(-0.01), chosen(0.01)) == (1, 2)


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
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {3: 101.0}},
        {"logprobs": -1},
    ],
    ids=str,
)
def test_what_chooses_nothing_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}.* is"):
        SamplingOptions(**wrong)


def test_the_smallest_temperature_and_share_draw_the_likeliest():
    logits = jnp.array([[3.0, 1.0, 3.5, -2.0]])
    for options in (SamplingOptions(temperature=1e-6), SamplingOptions(top_p=1e-6)):
        for seed in range(5):
            assert int(draw(options, logits, seed)[0]) == 2
