"""Experts with a capacity against a loop over tokens: who finds a place, and what comes out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.experts.capacity import places_per_row, with_places, within_capacity
from maxlm.kernels.experts.mlp import ExpertLinear, ExpertWeights

BATCH, LENGTH, VISITS, EXPERTS, WIDTH = 3, 14, 2, 5, 8


@pytest.fixture(scope="module")
def routing():
    """Experts of every token, none for some (padding), and the tokens' turns in their rows."""
    rng = np.random.default_rng(0)
    demand = np.array([0.9, 0.3, 0, 0, 0])  # for the first experts
    draws = rng.random((BATCH, LENGTH, EXPERTS)) + demand
    chosen = np.argsort(-draws, -1)[..., :VISITS].astype(np.int32)
    chosen[rng.random((BATCH, LENGTH)) < 0.2] = EXPERTS
    turns = np.stack([rng.permutation(LENGTH) for _ in range(BATCH)]).astype(np.int32)
    return chosen, turns


def by_hand(chosen, turns, places):
    kept = np.zeros(chosen.shape, bool)
    for row in range(BATCH):
        taken = np.zeros(EXPERTS, int)
        for token in np.argsort(turns[row]):
            for visit, expert in enumerate(chosen[row, token]):
                if expert < EXPERTS:
                    kept[row, token, visit] = taken[expert] < places
                    taken[expert] += 1
    return kept


@pytest.mark.parametrize("places", [1, 3, LENGTH])
def test_earlier_tokens_of_a_row_find_places_first(routing, places):
    chosen, turns = routing
    kept = within_capacity(
        jnp.asarray(chosen), jnp.asarray(turns), places=places, num_experts=EXPERTS
    )
    wanted = by_hand(chosen, turns, places)
    np.testing.assert_array_equal(kept, wanted)
    assert wanted.sum() < (chosen < EXPERTS).sum() or places == LENGTH


def test_places_are_an_even_share_times_the_factor():
    assert places_per_row(1.0, 64, 2, 8) == 16
    assert places_per_row(1.25, 64, 2, 8) == 20
    assert places_per_row(1.0, 10, 1, 4) == math.ceil(10 / 4)
    assert places_per_row(0.1, 4, 1, 8) == 1


def test_each_token_gets_what_its_experts_say_of_it(routing):
    chosen, turns = routing
    kept = by_hand(chosen, turns, 3)
    chosen = np.where(kept, chosen, EXPERTS)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    scores = rng.random(chosen.shape).astype(np.float32)
    up, down = (rng.normal(size=(EXPERTS, WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    bias = rng.normal(size=(EXPERTS, WIDTH)).astype(np.float32)

    def run(x, scores, up, down):
        return with_places(
            x,
            jnp.asarray(chosen),
            scores,
            ExpertWeights(None, ExpertLinear(up), ExpertLinear(down, jnp.asarray(bias))),
            places=3,
            num_experts=EXPERTS,
            hidden_of=lambda gate, up: jnp.tanh(up),
            axis=None,
        )

    def plain(x, scores, up, down):
        every = jnp.einsum("btef,efd->bted", jnp.tanh(jnp.einsum("btd,edf->btef", x, up)), down)
        weight = jnp.sum(jax.nn.one_hot(chosen, EXPERTS) * scores[..., None], 2)
        return jnp.einsum("bted,bte->btd", every + bias, weight)

    arguments = (x, scores, up, down)
    np.testing.assert_allclose(run(*arguments), plain(*arguments), rtol=1e-4, atol=1e-4)
    for actual, wanted in zip(
        jax.grad(lambda *a: (run(*a) ** 2).sum(), (0, 1, 2, 3))(*arguments),
        jax.grad(lambda *a: (plain(*a) ** 2).sum(), (0, 1, 2, 3))(*arguments),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
