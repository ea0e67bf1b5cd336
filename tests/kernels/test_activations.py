"""Every activation against its formula, in float64, with its slope."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import Activation, ModelConfig
from maxlm.kernels.activations import ACTIVATIONS, gelu, hidden_of

CUBIC = 0.044715  # of the tanh approximation (Hendrycks & Gimpel)


def _sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


# Plain jnp, nothing of jax.nn; jax derives their slopes.
FORMULAS = {
    Activation.SILU: lambda x: x * _sigmoid(x),
    Activation.GELU: lambda x: x * 0.5 * (1 + jax.lax.erf(x / math.sqrt(2))),
    Activation.GELU_TANH: lambda x: (
        0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + CUBIC * x**3)))
    ),
    Activation.QUICK_GELU: lambda x: x * _sigmoid(1.702 * x),
    Activation.RELU: lambda x: jnp.where(x > 0, x, 0.0),
    Activation.RELU2: lambda x: jnp.where(x > 0, x * x, 0.0),
}


def test_every_activation_has_a_formula_here():
    assert set(ACTIVATIONS) == set(Activation) == set(FORMULAS)


def values_and_slopes(function):
    """Compiled as users' programs are: at the suite's lower level tanh is less exact near -1."""

    def run(x, dy):
        value, pullback = jax.vjp(function, x)
        return value, pullback(dy)[0]

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 3})


@pytest.mark.parametrize("kind", Activation, ids=str)
def test_values_and_slopes_equal_the_formula(kind):
    with jax.enable_x64(True):
        x = np.concatenate([np.linspace(-9, 9, 181), np.random.default_rng(0).normal(size=50)])
        x = jnp.asarray(x[x != 0])  # the slope of a ReLU at 0 is a matter of taste
        dy = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
        got, slope = values_and_slopes(ACTIVATIONS[kind])(x, dy)
        want, wanted_slope = values_and_slopes(FORMULAS[kind])(x, dy)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(slope, wanted_slope, rtol=1e-12, atol=1e-14)


def test_gelu_is_the_normal_distribution_by_the_standard_library():
    points = np.linspace(-6, 6, 49)
    cdf = np.array([0.5 * math.erfc(-p / math.sqrt(2)) for p in points])
    density = np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    with jax.enable_x64(True):
        x = jnp.asarray(points)
        np.testing.assert_allclose(gelu(x), points * cdf, rtol=0, atol=1e-14)
        slope = jax.vmap(jax.grad(gelu))(x)
        np.testing.assert_allclose(slope, cdf + points * density, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_activations_keep_the_dtype_and_stay_finite_far_out(dtype):
    x = jnp.asarray([-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4], dtype)
    for kind, activation in ACTIVATIONS.items():
        value, pullback = jax.vjp(activation, x)
        (slope,) = pullback(jnp.ones_like(x))
        assert value.dtype == slope.dtype == dtype, kind
        assert np.isfinite(value.astype(jnp.float32)).all(), kind
        assert np.isfinite(slope.astype(jnp.float32)).all(), kind


def test_gate_and_up_are_clamped_before_they_meet():
    gate = jnp.array([-9.0, -1.0, 1.0, 9.0])
    up = jnp.array([-9.0, 0.5, 9.0, 1.0])
    shifted = ModelConfig(mlp="gated_shifted", activation="quick_gelu", mlp_limit=3)
    clamped = jnp.minimum(gate, 3)  # the gate above alone, up on both sides
    want = clamped * _sigmoid(1.702 * clamped) * (jnp.array([-3.0, 0.5, 3.0, 1.0]) + 1)
    np.testing.assert_allclose(hidden_of(shifted)(gate, up), want, rtol=1e-6)
    plain = ModelConfig(mlp="plain", activation="relu", mlp_limit=3)
    np.testing.assert_array_equal(hidden_of(plain)(None, up), [0, 0.5, 3, 1])
    gated = ModelConfig(mlp="gated", activation="relu")
    np.testing.assert_array_equal(hidden_of(gated)(gate, up), [0, 0, 9, 9])
