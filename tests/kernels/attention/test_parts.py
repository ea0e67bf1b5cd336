import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.attention import blocks
from maxlm.kernels.attention.parts import Places, backward_part, forward_part
from tests.kernels.attention.packed import packed_batch, reference


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_block_size", lambda length: 32)


def _split(batch, order):
    """Queries and keys in two shards each, of the tokens that `order [2, T/2]` says."""
    query, key, value, segments = batch
    shards = [
        (query[:, o], key[:, o], value[:, o], segments[:, o], jnp.asarray(o, jnp.int32))
        for o in order
    ]
    return [
        (q, k, v, Places(query_index, key_index, query_segments, key_segments))
        for q, _, _, query_segments, query_index in shards
        for _, k, v, key_segments, key_index in shards
    ]


ORDERS = {
    "adjacent": np.arange(256).reshape(2, 128),
    # As a balanced ring lays tokens out: the first and the last quarter, then the two between.
    "zigzag": np.arange(256).reshape(4, 64)[[0, 3, 1, 2]].reshape(2, 128),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(("window", "cap"), [(None, None), (40, None), (None, 2.0)])
def test_parts_over_shards_of_the_keys_add_up_to_the_whole(order, window, cap):
    batch = packed_batch(width=16)
    features = {"window": window, "logit_cap": cap}
    out, pullback = jax.vjp(lambda *a: reference(window, cap)(*a, batch[3]), *batch[:3])
    d_out = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    wanted = pullback(d_out)
    pairs = _split(batch, order)

    d_query, d_key, d_value = (np.zeros(x.shape, np.float32) for x in wanted)
    for i, tokens in enumerate(order):
        mine = pairs[2 * i : 2 * i + 2]
        results = [forward_part(q, k, v, places, **features) for q, k, v, places in mine]
        lse = jnp.logaddexp(results[0][1], results[1][1])
        total = sum(o * jnp.exp(x - lse).swapaxes(1, 2)[..., None] for o, x in results)
        np.testing.assert_allclose(total, out[:, tokens], rtol=1e-5, atol=2e-6)
        for j, (q, k, v, places) in enumerate(mine):
            grads = backward_part(
                q, k, v, out[:, tokens], lse, d_out[:, tokens], places, **features
            )
            d_query[:, tokens] += grads[0]
            d_key[:, order[j]] += grads[1]
            d_value[:, order[j]] += grads[2]
    for ours, theirs in zip((d_query, d_key, d_value), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_a_query_that_sees_nothing_has_output_zero_and_no_weight():
    query, key, value, segments = packed_batch(width=16, rows=[[256]])
    early, late = jnp.arange(128), jnp.arange(128, 256)
    places = Places(early, late, segments[:, :128], segments[:, 128:])
    q, k, v = query[:, :128], key[:, 128:], value[:, 128:]
    out, lse = forward_part(q, k, v, places)
    assert not np.any(out) and np.all(np.isneginf(lse))
    for grad in backward_part(q, k, v, out, lse, jnp.ones_like(q), places):
        assert not np.any(grad)


@pytest.mark.parametrize("window", [None, 70])
def test_only_blocks_that_can_be_seen_are_computed(window):
    _, key, _, segments = packed_batch(width=16, rows=[[96, 160]])
    index = jnp.arange(256)
    queries = blocks.cut_queries(key, 2, index, segments, 32)
    keys = blocks.cut_keys(key, key, index, segments, 32)
    found = blocks.visible(queries, keys, window)
    # Blocks of 32: a document of 3, one of 5; a window of 70 reaches 3 blocks back.
    first = [0, 0, 0, 3, 3, 3, 3, 4] if window else [0, 0, 0, 3, 3, 3, 3, 3]
    np.testing.assert_array_equal(found, [first, np.arange(1, 9)])


def test_no_block_lies_in_two_runs_of_tokens():
    """Else keys of the late run would be computed for queries of the early one."""
    _, key, _, segments = packed_batch(width=16, rows=[[256]])
    key, segments = key[:, :96], segments[:, :96]
    early_and_late = jnp.concatenate([jnp.arange(48), jnp.arange(500, 548)])
    size = blocks.even_block(96, runs=2)
    queries = blocks.cut_queries(key, 2, early_and_late, segments, size)
    keys = blocks.cut_keys(key, key, early_and_late, segments, size)
    # 48 tokens are two blocks, where 96 in one run would be three.
    np.testing.assert_array_equal(queries.token_index.max(1), [23, 47, 523, 547])
    np.testing.assert_array_equal(blocks.visible(queries, keys, None)[1], [1, 2, 3, 4])
