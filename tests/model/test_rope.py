"""Stretched frequencies by their definitions; parity with transformers is checked by family."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config.schema import ModelConfig, RopeScaling
from maxlm.kernels.rotation import rotate
from maxlm.model.rope import attention_factor, frequencies, rope_angles

WIDTH, THETA = 64, 10_000.0
PLAIN = frequencies(WIDTH, THETA, RopeScaling())


def test_linear_divides_every_frequency():
    stretched = frequencies(WIDTH, THETA, RopeScaling(kind="linear", factor=4))
    np.testing.assert_allclose(stretched, PLAIN / 4, rtol=1e-6)


def test_llama3_keeps_fast_frequencies_and_divides_slow_ones():
    scaling = RopeScaling(kind="llama3", factor=8, original_length=512)
    ratio = frequencies(WIDTH, THETA, scaling) / PLAIN
    rotations = 512 * PLAIN / (2 * math.pi)
    np.testing.assert_allclose(ratio[rotations > 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[rotations < 1], 1 / 8, rtol=1e-6)
    between = ratio[(rotations > 1) & (rotations < 4)]
    assert len(between) > 2 and (np.diff(between) < 0).all() and between.max() < 1


def test_yarn_keeps_fast_frequencies_divides_slow_ones_and_sharpens_attention():
    scaling = RopeScaling(kind="yarn", factor=4, original_length=512, fast_rotations=32)
    ratio = frequencies(WIDTH, THETA, scaling) / PLAIN
    rotations = 512 * PLAIN / (2 * math.pi)
    np.testing.assert_allclose(ratio[rotations > 40], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[rotations < 0.8], 1 / 4, rtol=1e-6)
    assert attention_factor(scaling) == 0.1 * math.log(4) + 1
    assert attention_factor(RopeScaling(kind="yarn", factor=4, attention_factor=2)) == 2


def test_yarn_goes_over_between_the_indices_themselves_without_truncation():
    whole = RopeScaling(kind="yarn", factor=4, original_length=512, fast_rotations=32)
    exact = whole.model_copy(update={"truncate": False})
    ratio = frequencies(WIDTH, THETA, exact) / PLAIN
    index = WIDTH * np.log(512 / (np.array([32, 1]) * 2 * math.pi)) / (2 * math.log(THETA))
    kept = 1 - np.clip((np.arange(WIDTH // 2) - index[0]) / (index[1] - index[0]), 0, 1)
    np.testing.assert_allclose(ratio, kept + (1 - kept) / 4, rtol=1e-5)
    assert np.abs(ratio - frequencies(WIDTH, THETA, whole) / PLAIN).max() > 0.01


def test_longrope_takes_its_factors_by_the_context_and_sharpens_attention_by_the_stretch():
    short, long = np.linspace(1, 2, WIDTH // 2), np.linspace(1, 50, WIDTH // 2)
    scaling = RopeScaling(
        kind="longrope",
        factor=32,
        original_length=512,
        short_factors=short.tolist(),
        long_factors=long.tolist(),
    )
    for context, factors in [(512, short), (513, long)]:
        ratio = frequencies(WIDTH, THETA, scaling, context) / PLAIN
        np.testing.assert_allclose(ratio, 1 / factors, rtol=1e-6)
    assert attention_factor(scaling) == math.sqrt(1 + math.log(32) / math.log(512))


def test_a_part_of_a_head_stays_where_it_is_and_the_rest_keeps_its_length():
    config = ModelConfig(head_dim=16, rope_fraction=0.5)
    positions = jnp.arange(6)[None]
    cos, sin = rope_angles(config, positions)
    assert cos.shape == (1, 6, 1, 4)
    x = jax.random.normal(jax.random.key(0), (1, 6, 2, 16))
    turned = rotate(x, cos, sin)
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    assert np.abs(turned[:, 1:, :, :8] - x[:, 1:, :, :8]).max() > 0.1


def test_local_layers_have_their_own_base_without_a_stretch():
    scaling = RopeScaling(kind="linear", factor=8)
    config = ModelConfig(head_dim=16, rope_theta=1e6, rope_local_theta=1e4, rope_scaling=scaling)
    positions = jnp.arange(6)[None]
    local = rope_angles(config, positions, local=True)
    plain = rope_angles(ModelConfig(head_dim=16, rope_theta=1e4), positions)
    np.testing.assert_array_equal(local, plain)
