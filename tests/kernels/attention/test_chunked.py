from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.attention import blocks
from maxlm.kernels.attention.chunked import chunked_attention
from tests.kernels.attention.packed import (
    FEATURES,
    assert_equal_with_gradients,
    packed_batch,
    reference,
    with_sinks,
    with_values_of,
)
from tests.kernels.operations import operations


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_block_size", lambda length: 64)


@pytest.mark.parametrize(("kv_heads", "window", "cap"), FEATURES)
def test_equals_the_reference_on_packed_rows(kv_heads, window, cap):
    batch = packed_batch(kv_heads=kv_heads, width=16)
    function = partial(chunked_attention, window=window, logit_cap=cap)
    assert_equal_with_gradients(function, batch, window=window, logit_cap=cap)


@pytest.mark.parametrize(("kv_heads", "window", "cap"), FEATURES)
def test_sinks_and_values_of_another_width_equal_the_reference(kv_heads, window, cap):
    batch = with_sinks(with_values_of(packed_batch(kv_heads=kv_heads, width=16), 24))
    function = partial(chunked_attention, window=window, logit_cap=cap)
    assert_equal_with_gradients(function, batch, window=window, logit_cap=cap)


@pytest.mark.parametrize("length", [1, 40, 65, 255])
def test_any_length_is_filled_up_to_blocks(length):
    batch = packed_batch(length=length, width=16, rows=[[length // 2, length - length // 2]])
    assert_equal_with_gradients(chunked_attention, batch)


def test_bfloat16_is_as_near_to_float32_as_the_reference_in_bfloat16():
    batch = packed_batch(width=16)
    exact = np.asarray(reference()(*batch))
    narrow = [x.astype(jnp.bfloat16) for x in batch[:3]]

    def error(function):
        return np.abs(np.asarray(function(*narrow, batch[3]), np.float32) - exact).max()

    assert error(chunked_attention) <= 1.5 * error(reference())
    assert_equal_with_gradients(chunked_attention, (*narrow, batch[3]), tolerance=0.02)


def test_float64_is_exact():
    with jax.enable_x64(True):
        batch = packed_batch(width=16, dtype=jnp.float64)
        function = partial(chunked_attention, window=50, logit_cap=2.0)
        for case in (batch, with_sinks(with_values_of(batch, 8))):
            assert_equal_with_gradients(function, case, window=50, logit_cap=2.0, tolerance=1e-12)


def test_equal_ids_that_are_not_adjacent_see_each_other():
    query, key, value, segments = packed_batch(width=16)
    mixed = jnp.asarray(np.random.default_rng(1).integers(0, 3, segments.shape), jnp.int32)
    assert_equal_with_gradients(chunked_attention, (query, key, value, mixed))


def _temporaries(length):
    query, key, value, segments = packed_batch(length=length, width=16, rows=[[length]])

    def loss(query, key, value):
        return chunked_attention(query, key, value, segments).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, key, value).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_length():
    small, large = _temporaries(1024), _temporaries(4096)
    assert large < 4.2 * small


def test_rematerialisation_that_saves_its_names_does_not_run_it_twice():
    query, key, value, segments = packed_batch(width=16)

    def loops(policy):
        def loss(query):
            return chunked_attention(query, key, value, segments).sum()

        traced = jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(query)
        return operations(traced.jaxpr)["while"]

    names = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")
    plain = jax.checkpoint_policies.everything_saveable
    again = jax.checkpoint_policies.nothing_saveable
    assert loops(names) == loops(plain) < loops(again)
