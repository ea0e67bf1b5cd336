"""Pinned layouts: nothing changes but where a TPU puts numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.row_major import STAYS_DIVIDED, row_major


def test_values_and_gradients_stay():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: (row_major(x) ** 3).sum()))(x)
    np.testing.assert_array_equal(value, (x**3).sum())
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-6)


@pytest.mark.parametrize("map_over", [0, 1, 2])
def test_it_can_be_mapped(map_over):
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(jax.vmap(row_major, map_over, map_over)(x), x)


@pytest.mark.parametrize(("platform", "times"), [("tpu", 2), ("cpu", 0), ("cuda", 0)])
def test_only_a_tpu_is_told_for_the_array_and_its_gradient(platform, times):
    gradient = jax.jit(jax.grad(lambda x: (jnp.sin(row_major(x))).sum()))
    text = gradient.trace(jnp.ones((8, 128))).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("custom_call @LayoutConstraint") == times * STAYS_DIVIDED
