"""The linear map against `jnp.tensordot`, values and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.linear import linear

# Both ways to write the weight gradient (inputs narrower and wider than outputs), one and two
# contracted dims, several output dims, batches of any rank.
SHAPES = {
    "up": ((2, 5, 6), (6, 11), 1),
    "down": ((2, 5, 11), (11, 6), 1),
    "square": ((2, 5, 6), (6, 6), 1),
    "heads": ((2, 5, 6), (6, 4, 3), 1),
    "output of heads": ((2, 5, 4, 3), (4, 3, 6), 2),
    "output of few heads": ((2, 5, 1, 3), (1, 3, 6), 2),
    "no batch": ((6,), (6, 3), 1),
    "batch of one token": ((1, 1, 6), (6, 3), 1),
}


def _arrays(shapes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_equal_tensordot(name):
    left, right, contracted = SHAPES[name]
    with jax.enable_x64(True):
        x, kernel = _arrays((left, right))
        got, pullback = jax.vjp(jax.jit(lambda x, k: linear(x, k, contracted)), x, kernel)
        want, wanted_pullback = jax.vjp(lambda x, k: jnp.tensordot(x, k, contracted), x, kernel)
        assert got.shape == want.shape == (*left[:-contracted], *right[contracted:])
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
        (dy,) = _arrays((got.shape,), seed=1)
        for ours, theirs in zip(pullback(dy), wanted_pullback(dy), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ["up", "down"])
def test_the_dtype_is_that_of_the_inputs(name, dtype):
    left, right, contracted = SHAPES[name]
    x, kernel = _arrays((left, right), dtype=dtype)
    y, pullback = jax.vjp(lambda x, k: linear(x, k, contracted), x, kernel)
    assert y.dtype == dtype
    assert [gradient.dtype for gradient in pullback(y)] == [dtype, dtype]


def test_a_stack_of_kernels_can_be_mapped_over():
    with jax.enable_x64(True):
        x, kernels = _arrays(((3, 2, 5), (3, 5, 4)))

        def ours(x, kernels):
            return (jax.vmap(lambda a, k: linear(a, k, 1))(x, kernels) ** 2).sum()

        def plain(x, kernels):
            return (jnp.einsum("lbi,lio->lbo", x, kernels) ** 2).sum()

        for got, want in zip(
            jax.grad(ours, (0, 1))(x, kernels), jax.grad(plain, (0, 1))(x, kernels), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
