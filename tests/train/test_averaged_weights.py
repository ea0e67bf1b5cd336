"""The averaged weights lose the random initialisation before the run's decay would."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from maxlm.train.step import _averaged


def test_the_average_of_constant_weights_soon_is_those_weights():
    average = {"w": jnp.full(3, 100.0)}
    for step in range(200):
        average = _averaged(average, {"w": jnp.ones(3)}, 0.9999, jnp.int32(step))
    np.testing.assert_allclose(average["w"], 1.0, atol=1e-4)


def test_the_decay_ends_at_the_one_that_was_asked_for():
    average = _averaged({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.9, jnp.int32(10_000))
    np.testing.assert_allclose(average["w"], 0.1, rtol=1e-5)
