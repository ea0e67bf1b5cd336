"""Linear maps of 8 bits against the same arithmetic in numpy."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from maxlm.config.choices import Quantization
from maxlm.kernels.quantized import quantize, quantized_linear, stored_dtype

RNG = np.random.default_rng(0)
KERNEL = (RNG.normal(size=(12, 3, 5)) * np.array([1e-3, 1.0, 40.0])[:, None]).astype(np.float32)
X = RNG.normal(size=(2, 4, 12)).astype(np.float32)


def test_int8_is_right_to_half_a_step_of_its_output():
    values, scale = quantize(jnp.asarray(KERNEL), (0,), jnp.dtype(jnp.int8))
    assert values.dtype == jnp.int8 and scale.shape == (3, 5)
    largest = np.abs(KERNEL).max(0)
    np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(values).max(0), 127)
    error = np.abs(np.asarray(values, np.float32) * scale - KERNEL)
    assert (error <= np.asarray(scale) / 2 * 1.001).all()


def test_fp8_is_right_to_one_part_in_sixteen():
    values, scale = quantize(jnp.asarray(KERNEL), (0,), jnp.dtype(jnp.float8_e4m3fn))
    found = np.asarray(values).astype(np.float32) * np.asarray(scale)
    smallest = np.asarray(scale) * 2.0**-9  # half a step of numbers below the normal ones
    assert (np.abs(found - KERNEL) <= np.maximum(np.abs(KERNEL) / 16, smallest * 1.001)).all()


def test_outputs_that_are_all_zero_stay_so():
    values, scale = quantize(jnp.zeros((4, 2)), (0,), jnp.dtype(jnp.int8))
    assert not np.any(values) and np.all(scale == 1)


def narrow(array, axis, kind):
    """Rounded by numpy: values as float64, scales."""
    largest = np.abs(array).max(axis, keepdims=True)
    if stored_dtype(kind) == jnp.int8:
        scale = largest / np.float32(127)
        return np.round(array / scale).astype(np.float64), scale.astype(np.float64)
    scale = largest / np.float32(448)
    rounded = (array / scale).astype(ml_dtypes.float8_e4m3fn)
    return rounded.astype(np.float64), scale.astype(np.float64)


@pytest.mark.parametrize("kind", Quantization)
@pytest.mark.parametrize("output_major", [False, True])
def test_the_product_is_that_of_the_rounded_numbers(kind, output_major):
    matrix = KERNEL.reshape(12, 15)
    weights, weight_scale = narrow(matrix, 0, kind)
    x = X.reshape(8, 12)
    if kind in (Quantization.INT8_MATMUL, Quantization.FP8_MATMUL):
        tokens, token_scale = narrow(x, 1, kind)
        wanted = tokens @ weights * token_scale * weight_scale
    else:
        wanted = x.astype(np.float64) @ (weights * weight_scale)
    values, scale = quantize(jnp.asarray(KERNEL), (0,), stored_dtype(kind))
    if output_major:
        values = jnp.moveaxis(values, 0, -1)
    found = quantized_linear(jnp.asarray(X), values, scale, 1, kind, output_major=output_major)
    assert found.shape == (2, 4, 3, 5)
    np.testing.assert_allclose(found.reshape(8, 15), wanted, rtol=2e-5, atol=1e-6)
