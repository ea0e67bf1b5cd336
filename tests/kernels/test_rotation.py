"""Rotations of heads: every way against complex numbers, and its gradient against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels import rotation
from maxlm.kernels.rotation import rotate

WAYS = {"rotate": rotate, "matmul": rotation._by_matmul, "halves": rotation._by_halves}


def _case(width, rotated, dtype=np.float32, factor=1.0):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, width)).astype(dtype)
    angles = rng.uniform(-9, 9, size=(2, 5, 1, rotated // 2)).astype(np.float32)
    return (
        jnp.asarray(x),
        jnp.asarray(factor * np.cos(angles)),
        jnp.asarray(factor * np.sin(angles)),
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("width", "rotated"), [(8, 8), (12, 8), (6, 2)])
def test_pairs_turn_as_complex_numbers_and_the_rest_stays(way, width, rotated):
    x, cos, sin = _case(width, rotated)
    half = rotated // 2
    got = np.asarray(WAYS[way](x, cos, sin))
    pairs = np.asarray(x[..., :half] + 1j * x[..., half:rotated])
    turned = pairs * np.asarray(cos + 1j * sin)
    np.testing.assert_allclose(got[..., :half], turned.real, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[..., half:rotated], turned.imag, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[..., rotated:], x[..., rotated:])


@pytest.mark.parametrize(("width", "rotated"), [(128, 128), (96, 64)])
def test_the_matmul_gives_the_same_bits(width, rotated):
    x, cos, sin = _case(width, rotated, jnp.bfloat16)
    np.testing.assert_array_equal(
        *(np.asarray(WAYS[way](x, cos, sin), np.float32) for way in ("matmul", "halves"))
    )


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_gradient_is_that_of_the_plain_formula(factor):
    x, cos, sin = _case(12, 8, factor=factor)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)
    ours, plain = (
        jax.grad(lambda x, way=way: (weights * WAYS[way](x, cos, sin)).sum())(x)
        for way in ("rotate", "halves")
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_tpu_swaps_by_a_product_and_others_do_not():
    x, cos, sin = _case(128, 128, jnp.bfloat16)
    for platform, products in (("tpu", 1), ("cpu", 0), ("cuda", 0)):
        text = jax.jit(rotate).trace(x, cos, sin).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == products, platform
