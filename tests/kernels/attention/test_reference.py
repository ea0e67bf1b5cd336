import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.attention.reference import reference_attention


def _loops(query, key, value, segments, window, cap, sinks=None):
    """The definition, one query at a time, in float64."""
    batch, length, heads, width = query.shape
    groups = heads // key.shape[2]
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                seen = [
                    s
                    for s in range(t + 1)
                    if segments[b, s] == segments[b, t] and (window is None or s > t - window)
                ]
                logits = key[b, seen, h // groups] @ query[b, t, h] / np.sqrt(width)
                if cap:
                    logits = cap * np.tanh(logits / cap)
                weights = np.exp(logits - logits.max())
                sink = 0 if sinks is None else np.exp(sinks[h] - logits.max())
                out[b, t, h] = weights / (weights.sum() + sink) @ value[b, seen, h // groups]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_equals_its_definition_on_packed_rows(kv_heads, window, cap):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 17, 4, 8))
    key, value = rng.normal(size=(2, 2, 17, kv_heads, 8))
    segments = np.array([[1] * 6 + [2] * 8 + [0] * 3, [1] * 17])
    arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    got = reference_attention(
        *arrays, query_segments=segments, key_segments=segments, window=window, logit_cap=cap
    )
    want = _loops(query, key, value, segments, window, cap)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_sinks_take_their_share_and_values_may_be_wider():
    rng = np.random.default_rng(0)
    query, sinks = rng.normal(size=(2, 17, 4, 8)), np.array([-3.0, 0.0, 2.0, 9.0])
    key, value = rng.normal(size=(2, 17, 2, 8)), rng.normal(size=(2, 17, 2, 12))
    segments = np.array([[1] * 6 + [2] * 8 + [0] * 3, [1] * 17])
    arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    got = reference_attention(
        *arrays, query_segments=segments, key_segments=segments, sinks=jnp.asarray(sinks)
    )
    want = _loops(query, key, value, segments, None, None, sinks)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gradients_do_not_cross_documents():
    rng = np.random.default_rng(0)
    query, key, value = jnp.asarray(rng.normal(size=(3, 1, 10, 2, 4)), jnp.float32)
    segments = jnp.asarray([[1] * 5 + [2] * 5])

    def second_document(key, value):
        out = reference_attention(query, key, value, query_segments=segments, key_segments=segments)
        return (out[:, 5:] ** 2).sum()

    for grad in jax.grad(second_document, (0, 1))(key, value):
        assert not np.any(grad[:, :5])
        assert np.any(grad[:, 5:])
