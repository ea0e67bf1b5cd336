"""The learning rate's fraction at every corner, against closed forms."""

import math

import jax
import numpy as np
import pytest

from maxlm.config.schema import ScheduleConfig
from maxlm.train.schedule import RateSchedule


def rate(kind="wsd", warmup=0, total=100, start=0, **config):
    return RateSchedule(ScheduleConfig(kind=kind, **config), warmup, total, start)


def values(schedule):
    """The fraction at every step of the run."""
    return np.asarray(schedule(np.arange(schedule.start_step, schedule.total_steps)))


def test_warm_up_stable_and_decay_meet_where_they_should():
    found = rate(warmup=10, total=100, decay_fraction=0.2)
    corners = {
        0: 0.1,  # the first step already moves
        4: 0.5,
        8: 0.9,
        9: 1.0,  # the last step of warm-up is at the peak
        10: 1.0,
        79: 1.0,
        80: 1.0,  # 20 steps are left: the last at the peak
        81: 19 / 20,
        90: 0.5,
        98: 2 / 20,
        99: 1 / 20,  # the last step still moves
        100: 0.0,
        200: 0.0,
    }
    np.testing.assert_allclose(
        found(np.array(list(corners))), list(corners.values()), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_warm_up_stable_decay_equals_its_closed_form_at_every_step(warmup, decay, final):
    total, decay_steps = 50, round(decay * 50)
    wanted = []
    for step in range(total):
        rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
        left = min(1.0, (total - step) / decay_steps) if decay_steps else 1.0
        wanted.append(rising * (final + (1 - final) * left))
    found = rate(warmup=warmup, total=total, decay_fraction=decay, final_fraction=final)
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-6)


def test_cosine_begins_at_the_peak_is_halfway_in_the_middle_and_ends_at_the_final_fraction():
    found = rate("cosine", warmup=20, total=120, final_fraction=0.1)
    corners = {
        0: 0.05,
        9: 0.5,
        18: 0.95,
        19: 1.0,  # the last step of warm-up is at the peak
        69: 0.55,  # halfway between 1 and 0.1
        119: 0.1,  # the last step
        120: 0.1,
        500: 0.1,
    }
    np.testing.assert_allclose(
        found(np.array(list(corners))), list(corners.values()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_equals_its_closed_form_at_every_step(warmup, final):
    total = 50
    wanted = []
    for step in range(total):
        if step < warmup:
            wanted.append((step + 1) / warmup)
            continue
        progress = (step + 1 - warmup) / (total - warmup)
        wanted.append(final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
    found = rate("cosine", warmup=warmup, total=total, final_fraction=final)
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_a_branch_has_the_schedule_of_a_run_of_its_own_from_its_first_step(kind):
    alone = rate(kind, warmup=5, total=60, final_fraction=0.1)
    branch = rate(kind, warmup=5, total=1060, start=1000, final_fraction=0.1)
    np.testing.assert_array_equal(values(branch), values(alone))


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_the_rate_is_a_fraction_that_never_rises_after_warm_up(kind):
    found = values(rate(kind, warmup=7, total=90, final_fraction=0.05))
    assert found.min() > 0 and found.max() == 1
    assert (np.diff(found[:7]) > 0).all() and (np.diff(found[6:]) <= 0).all()


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
@pytest.mark.parametrize(("warmup", "total"), [(1, 1), (0, 1), (3, 3), (2, 3)])
def test_the_shortest_runs_have_a_rate_above_nothing_at_their_first_step(kind, warmup, total):
    found = values(rate(kind, warmup=warmup, total=total, final_fraction=0.1))
    assert np.isfinite(found).all() and (found > 0).all() and (found <= 1).all()


def test_any_shape_of_steps_is_answered_in_float32_inside_and_outside_a_program():
    found = rate(warmup=3, total=12)
    steps = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert found(steps).shape == (3, 4) and found(steps).dtype == np.float32
    np.testing.assert_array_equal(jax.jit(found)(steps), found(steps))
