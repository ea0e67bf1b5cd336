"""What every implementation of attention is tested with: a packed batch, and outputs with gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.kernels.attention.reference import reference_attention

# Documents that end inside blocks and at their edges, one of a single token, and padding.
LENGTHS = [[70, 58, 1, 100, 27], [256], [128, 97]]


# Key-value heads (of 4), window, soft cap.
FEATURES = [(4, None, None), (2, 30, None), (2, None, 2.0), (1, 200, 2.0)]


def packed_batch(length=256, heads=4, kv_heads=2, width=64, dtype=jnp.float32, rows=LENGTHS):
    """Queries, keys, values and segment ids of rows with documents of these lengths."""
    rng = np.random.default_rng(0)
    segments = np.zeros((len(rows), length), np.int32)
    for row, lengths in zip(segments, rows, strict=True):
        ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        row[: len(ids)] = ids

    def normal(heads):
        return jnp.asarray(rng.normal(size=(len(rows), length, heads, width)), dtype)

    return normal(heads), normal(kv_heads), normal(kv_heads), jnp.asarray(segments)


def with_sinks(batch):
    """A batch with a sink of each head, of which some weigh more than any key and some nothing."""
    heads = batch[0].shape[2]
    return (*batch, jnp.linspace(-4, 6, heads, dtype=batch[0].dtype))


def with_values_of(batch, width):
    """A batch whose values have another width than its queries and keys."""
    query, key, value, *rest = batch
    shape = (*value.shape[:3], width)
    return (
        query,
        key,
        jnp.asarray(np.random.default_rng(1).normal(size=shape), value.dtype),
        *rest,
    )


def with_gradients(function, query, key, value, segments, *sinks):
    """Output and gradients of the arrays for a cotangent that depends on the place."""

    def run(*arrays):
        out, pullback = jax.vjp(lambda q, k, v, *s: function(q, k, v, segments, *s), *arrays)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, *pullback(weights.astype(out.dtype))

    return jax.jit(run)(query, key, value, *sinks)


def reference(window=None, logit_cap=None):
    """The definition, called as the implementations are."""

    def run(query, key, value, segments, sinks=None):
        return reference_attention(
            query,
            key,
            value,
            query_segments=segments,
            key_segments=segments,
            window=window,
            logit_cap=logit_cap,
            sinks=sinks,
        )

    return run


def assert_equal_with_gradients(function, batch, *, window=None, logit_cap=None, tolerance=2e-5):
    """The implementation's output and gradients are the definition's."""
    want = with_gradients(reference(window, logit_cap), *batch)
    got = with_gradients(function, *batch)
    names = ("out", "query", "key", "value", "sinks")[: len(want)]
    for name, ours, theirs in zip(names, got, want, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        scale = max(np.abs(theirs).max(), 1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=name)
