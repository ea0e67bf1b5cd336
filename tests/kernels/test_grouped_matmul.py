"""Every grouped matmul equals a loop over groups in numpy, forward and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ExpertMatmul
from maxlm.errors import ConfigError
from maxlm.kernels.grouped_matmul.choose import IMPLEMENTATIONS, choose
from maxlm.kernels.grouped_matmul.megablox import MEMORY, kernel_bytes, megablox, tiles_of

# Rows that end inside blocks and tiles, empty groups, one group with all, rows past the groups.
SIZES = {
    "uneven": [3, 70, 0, 37, 1, 20],
    "one group has all": [0, 0, 140, 0, 0, 0],
    "no rows": [0, 0, 0, 0, 0, 0],
    "rows past the groups": [30, 0, 5, 16, 16, 8],
}
ROWS, DEPTH, COLUMNS = 140, 24, 40


def _function(kind):
    if kind is ExpertMatmul.MEGABLOX:
        return partial(megablox, interpret=True)
    return IMPLEMENTATIONS[kind].function


def _by_hand(x, weights, sizes, dy):
    """Product and both gradients, group by group."""
    out, dx, dweights = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(weights)
    start = 0
    for group, size in enumerate(sizes):
        rows = slice(start, start + size)
        out[rows] = x[rows] @ weights[group]
        dx[rows] = dy[rows] @ weights[group].T
        dweights[group] = x[rows].T @ dy[rows]
        start += size
    return out, dx, dweights


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_product_and_gradients_equal_a_loop_over_groups(kind, sizes, dtype):
    if dtype not in IMPLEMENTATIONS[kind].dtypes:
        pytest.skip("not a dtype that it declares")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DEPTH)).astype(dtype)
    weights = rng.normal(size=(len(sizes), DEPTH, COLUMNS)).astype(dtype)
    dy = rng.normal(size=(ROWS, COLUMNS)).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        counts = jnp.asarray(sizes, jnp.int32)
        function = jax.jit(lambda x, w: _function(kind)(x, w, counts))
        out, pull = jax.vjp(function, x, weights)
        actual = (out, *pull(jnp.asarray(dy)))
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    out, dx, dweights = actual
    covered = sum(sizes)  # the rows past the groups may hold anything
    actual = (out[:covered], dx[:covered], dweights)
    by_hand = _by_hand(x[:covered], weights, sizes, dy[:covered])
    for got, wanted in zip(actual, by_hand, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * 25)


@pytest.mark.parametrize("narrow", [jnp.int8, jnp.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("kind", IMPLEMENTATIONS, ids=str)
def test_weights_of_8_bits_are_widened_exactly(kind, narrow):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DEPTH)).astype(np.float32)
    sizes = jnp.asarray(SIZES["uneven"], jnp.int32)
    weights = jnp.asarray(rng.integers(-100, 100, (len(sizes), DEPTH, COLUMNS)), narrow)
    function = jax.jit(lambda w: _function(kind)(x, w, sizes))
    np.testing.assert_array_equal(function(weights), function(weights.astype(jnp.float32)))


@pytest.mark.parametrize("kind", IMPLEMENTATIONS, ids=str)
def test_what_lies_past_the_groups_never_shows(kind):
    """Not even where it is not a number."""
    rng = np.random.default_rng(1)
    sizes = jnp.asarray([4, 0, 7], jnp.int32)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    dy = rng.normal(size=(32, 16)).astype(np.float32)
    x[11:] = dy[11:] = np.nan
    weights = rng.normal(size=(3, 8, 16)).astype(np.float32)
    out, pull = jax.vjp(jax.jit(lambda x, w: _function(kind)(x, w, sizes)), x, weights)
    dx, dweights = pull(jnp.asarray(dy))
    for array in (out[:11], dx[:11], dweights):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("kind", IMPLEMENTATIONS, ids=str)
def test_sums_are_taken_in_float32(kind):
    """1 + 2⁻⁹ × 512 terms: bfloat16 sums would stay at 1."""
    x = jnp.full((16, 513), 2.0**-9, jnp.bfloat16).at[:, 0].set(1)
    weights = jnp.ones((2, 513, 128), jnp.bfloat16)
    out = _function(kind)(x, weights, jnp.asarray([9, 7], jnp.int32))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 2.0)


@pytest.mark.parametrize("of_gradient", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_into_a_kernel_s_memory_and_use_the_matrix_unit(itemsize, of_gradient):
    sizes = [*range(128, 4096, 384), 5760, 7168, 14336, 16384]
    for depth in sizes:
        for columns in sizes:
            tiles = tiles_of(65536, depth, columns, itemsize, of_gradient=of_gradient)
            high, deep, wide = tiles
            assert high == 256 and deep % 128 == wide % 128 == 0 and wide <= 1024
            assert kernel_bytes(tiles, itemsize, of_gradient) <= MEMORY
            assert wide >= min(256, columns / 2) and deep >= min(1024, depth)
            # Two TensorCores share the columns: two tiles at least.
            assert columns == 128 or wide < columns


def test_the_choice_follows_the_hardware_and_says_why():
    auto = ExpertMatmul.AUTO
    assert choose(auto, platform="tpu", dtype=jnp.bfloat16).kind is ExpertMatmul.MEGABLOX
    assert choose(auto, platform="tpu", dtype=jnp.float64).kind is ExpertMatmul.RAGGED_DOT
    assert choose(auto, platform="gpu", dtype=jnp.bfloat16).kind is ExpertMatmul.RAGGED_DOT
    on_cpu = choose(auto, platform="cpu", dtype=jnp.float32)
    assert on_cpu.kind is ExpertMatmul.BLOCKS and "every row with every expert" in on_cpu.reason
    forced = choose(ExpertMatmul.REFERENCE, platform="gpu", dtype=jnp.float32)
    assert forced.kind is ExpertMatmul.REFERENCE and "parallel.expert_matmul" in forced.reason


def test_a_kernel_forced_where_it_cannot_run_is_refused():
    with pytest.raises(ConfigError, match="megablox runs on tpu only, and this is cpu; use ref"):
        choose(ExpertMatmul.MEGABLOX, platform="cpu", dtype=jnp.float32)
    with pytest.raises(ConfigError, match="megablox computes in bfloat16, float32, not in float64"):
        choose(ExpertMatmul.MEGABLOX, platform="tpu", dtype=jnp.float64)
