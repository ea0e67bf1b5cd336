"""Attention over a ring of keys and values is attention over the whole text."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.attention.reference import reference_attention
from maxlm.model.cache import Cache, Pass, attend_cached, resized, ring_size, write

HEADS, KV_HEADS, WIDTH, VALUE = 4, 2, 8, 12
LENGTH, LAYERS = 24, 2


def text(rng):
    shapes = [(HEADS, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, VALUE)]
    return [jnp.asarray(rng.normal(size=(1, LENGTH, *shape)), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("sinks", [None, [0.5, -1.0, 2.0, 0.0]])
def test_in_passes_of_any_size_as_all_at_once(window, sinks):
    rng = np.random.default_rng(0)
    texts = [text(rng) for _ in range(2)]
    features = {
        "window": window,
        "logit_cap": 3.0,
        "sinks": None if sinks is None else jnp.asarray(sinks),
    }
    ones = jnp.ones((1, LENGTH), jnp.int32)
    wanted = [
        reference_attention(*one, query_segments=ones, key_segments=ones, **features)
        for one in texts
    ]
    size = ring_size(LENGTH, window, 4)
    assert size == (LENGTH if window is None else 8)
    cache = Cache(
        jnp.full((LAYERS, 3, KV_HEADS, size, WIDTH), 7.0),
        jnp.full((LAYERS, 3, KV_HEADS, size, VALUE), 7.0),
    )
    layer, rows = jnp.int32(1), [2, 0]
    done = [0, 0]
    for counts in [(4, 2), (1, 4), (3, 0), (4, 3), (1, 1), (1, 1), (4, 4), (2, 4), (4, 4), (0, 1)]:
        width = max(counts)
        parts = []
        for array in range(3):
            part = np.zeros((2, width, *texts[0][array].shape[2:]), np.float32)
            for i, (one, start, count) in enumerate(zip(texts, done, counts, strict=True)):
                part[i, :count] = one[array][0, start : start + count]
            parts.append(jnp.asarray(part))
        query, key, value = parts
        now = Pass(*map(jnp.asarray, (rows, done, counts)), fresh=False, in_order=False)
        cache = write(cache, layer, key, value, now)
        found = attend_cached(query, cache, layer, now, **features)
        for i, count in enumerate(counts):
            np.testing.assert_allclose(
                found[i, :count], wanted[i][0, done[i] : done[i] + count], atol=1e-5
            )
            done[i] += count
    assert done == [LENGTH, LENGTH]
    np.testing.assert_array_equal(cache.key[0], 7.0)  # the other layer …
    np.testing.assert_array_equal(cache.key[1, 1], 7.0)  # … and the row of nobody


def test_of_a_prompt_longer_than_the_ring_the_last_tokens_stay():
    rng = np.random.default_rng(1)
    _, key, value = text(rng)
    cache = Cache(
        jnp.zeros((1, 1, KV_HEADS, 8, WIDTH)),
        jnp.zeros((1, 1, KV_HEADS, 8, VALUE)),
    )
    now = Pass(*map(jnp.asarray, ([0], [0], [19])), fresh=True, in_order=True)
    written = write(cache, jnp.int32(0), key, value, now)
    for position in range(11, 19):
        np.testing.assert_array_equal(written.key[0, 0, :, position % 8], key[0, position])
        np.testing.assert_array_equal(written.value[0, 0, :, position % 8], value[0, position])


def test_a_larger_cache_holds_what_the_smaller_one_did():
    old = [[Cache(jnp.ones((1, 2, 1, 4, 3)), jnp.ones((1, 2, 1, 4, 3)))]]
    new = [[Cache(jnp.zeros((1, 3, 1, 6, 3)), jnp.zeros((1, 3, 1, 6, 3)))]]
    ((grown,),) = resized(old, new)
    wanted = np.zeros((1, 3, 1, 6, 3))
    wanted[:, :2, :, :4] = 1
    np.testing.assert_array_equal(grown.key, wanted)
