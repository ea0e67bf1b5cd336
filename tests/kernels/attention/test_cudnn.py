"""cuDNN attention without a GPU: its operands against a simulation that reads memory as cuDNN does.

What only a GPU shows (that cuDNN does what its documentation says, and how fast) is not tested here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.errors import ParallelError
from maxlm.kernels.attention import cudnn
from maxlm.kernels.attention.cudnn import cudnn_attention, max_segments, pack
from tests.kernels.attention.packed import assert_equal_with_gradients, packed_batch


def _documents(lengths, query_offsets, key_offsets):
    """Length, first element of the queries and of the keys of every document, as cuDNN finds them."""
    for n, q, k in zip(lengths.ravel(), query_offsets.ravel(), key_offsets.ravel(), strict=False):
        if n > 0:
            yield int(n), int(q), int(k)


def _tokens(buffer, offset, count, shape):
    """`[count, heads, width]` from a flat buffer."""
    size = int(np.prod(shape))
    return buffer[offset : offset + count * size].reshape(count, *shape)


def _weights(q, k, window):
    """Softmax over the keys of a document that each query sees `[H, n, n]`, and its log-sum-exp."""
    n, heads, width = q.shape
    k = np.repeat(k, heads // k.shape[1], axis=1)
    scores = np.einsum("qhc,khc->hqk", q, k) * width**-0.5
    index = np.arange(n)
    seen = index <= index[:, None]
    if window is not None:
        seen &= index > index[:, None] - window
    scores = np.where(seen, scores, -np.inf)
    lse = np.log(np.exp(scores).sum(-1))
    return np.exp(scores - lse[..., None]), lse


class SimulatedCudnn:
    """The two passes over flat buffers, in numpy; counts its calls."""

    def __init__(self):
        self.calls = 0

    def forward(self, query, key, value, packed, *, window):
        _, length, heads, _ = query.shape
        stats = jax.ShapeDtypeStruct((packed.lengths.size, heads, length), jnp.float32)

        def run(query, key, value, packed):
            self.calls += 1
            query, key, value = (np.asarray(x) for x in (query, key, value))
            places = [np.asarray(x) for x in packed[:3]]
            out, lse = np.zeros(query.size, query.dtype), np.zeros(stats.shape, np.float32)
            for s, (n, q_at, k_at) in enumerate(_documents(*places)):
                q = _tokens(query.ravel(), q_at, n, query.shape[2:])
                k, v = (_tokens(x.ravel(), k_at, n, x.shape[2:]) for x in (key, value))
                weights, lse[s, :, :n] = _weights(q, k, window)
                v = np.repeat(v, heads // v.shape[1], axis=1)
                _tokens(out, q_at, n, query.shape[2:])[:] = np.einsum("hqk,khc->qhc", weights, v)
            return out.reshape(query.shape), lse

        return jax.pure_callback(run, (query, stats), query, key, value, packed)

    def backward(self, query, key, value, out, stats, d_out, packed, *, window):
        def run(query, key, value, out, d_out, packed):
            query, key, value, out, d_out = (np.asarray(x) for x in (query, key, value, out, d_out))
            places = [np.asarray(x) for x in packed[:3]]
            heads, width = query.shape[2:]
            groups = heads // key.shape[2]
            grads = [np.zeros(x.size, x.dtype) for x in (query, key, value)]
            for n, q_at, k_at in _documents(*places):
                q, do, o = (
                    _tokens(x.ravel(), q_at, n, (heads, width)) for x in (query, d_out, out)
                )
                k, v = (_tokens(x.ravel(), k_at, n, x.shape[2:]) for x in (key, value))
                weights, _ = _weights(q, k, window)
                k, v = (np.repeat(x, groups, axis=1) for x in (k, v))
                d_weights = np.einsum("qhc,khc->hqk", do, v)
                row_sums = (do * o).sum(-1).T[..., None]
                d_scores = weights * (d_weights - row_sums) * width**-0.5
                d_k = np.einsum("hqk,qhc->khc", d_scores, q).reshape(n, -1, groups, width).sum(2)
                d_v = np.einsum("hqk,qhc->khc", weights, do).reshape(n, -1, groups, width).sum(2)
                d_q = np.einsum("hqk,khc->qhc", d_scores, k)
                for grad, at, x in zip(grads, (q_at, k_at, k_at), (d_q, d_k, d_v), strict=True):
                    _tokens(grad, at, n, x.shape[1:])[:] = x
            return tuple(
                g.reshape(x.shape) for g, x in zip(grads, (query, key, value), strict=True)
            )

        return jax.pure_callback(run, (query, key, value), query, key, value, out, d_out, packed)


@pytest.fixture
def simulated(monkeypatch):
    simulation = SimulatedCudnn()
    monkeypatch.setattr(cudnn, "packed_forward", simulation.forward)
    monkeypatch.setattr(cudnn, "packed_backward", simulation.backward)
    return simulation


@pytest.mark.parametrize(("kv_heads", "window"), [(4, None), (2, None), (1, 30)])
def test_packed_rows_are_exact_where_documents_fit(simulated, kv_heads, window):
    batch = packed_batch(kv_heads=kv_heads, width=16)

    def function(*arrays):
        return cudnn_attention(*arrays, window=window)

    assert_equal_with_gradients(function, batch, window=window)
    assert simulated.calls == 1


def _many():
    return jnp.asarray(np.repeat(np.arange(1, 65), 4)[None], jnp.int32)


def _in_pieces():
    return jnp.asarray(np.repeat([1, 2, 1, 2], 64)[None], jnp.int32)


@pytest.mark.parametrize("segments", [_many(), _in_pieces()], ids=["many", "in pieces"])
def test_rows_that_the_packed_layout_cannot_hold_are_exact_too(simulated, segments):
    query, key, value, _ = packed_batch(width=16, rows=[[256]])
    assert_equal_with_gradients(cudnn_attention, (query, key, value, segments))
    assert simulated.calls == 0


def test_documents_are_laid_out_one_after_the_other_over_all_rows():
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]], jnp.int32)
    packed = pack(segments, query_stride=8, key_stride=2, limit=4)
    np.testing.assert_array_equal(packed.lengths, [[2, 3, 1, 6], [0, 0, 0, 0]])
    begins = np.array([[0, 2, 5, 6, 12], [12] * 5])
    np.testing.assert_array_equal(packed.query_offsets, begins * 8)
    np.testing.assert_array_equal(packed.key_offsets, begins * 2)
    assert packed.fits


def test_a_row_as_full_as_it_may_be_fits():
    segments = jnp.asarray([[1, 2, 3], [1, 1, 2]], jnp.int32)
    packed = pack(segments, 1, 1, limit=3)
    assert packed.fits and not pack(segments, 1, 1, limit=2).fits
    np.testing.assert_array_equal(packed.lengths, [[1, 1, 1], [2, 1, 0]])
    np.testing.assert_array_equal(packed.query_offsets, [[0, 1, 2, 3], [5, 6, 6, 6]])


def test_more_documents_are_allowed_in_longer_rows_up_to_a_bound():
    assert [max_segments(n) for n in (128, 2048, 4096, 8192, 32768)] == [16, 16, 32, 64, 64]


def test_the_program_for_a_gpu_calls_cudnn_forward_and_backward_with_offsets():
    def shape(heads, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((2, 2048, heads, 64), dtype)

    def loss(query, key, value, segments):
        return cudnn_attention(query, key, value, segments, window=512).astype(jnp.float32).sum()

    segments = jax.ShapeDtypeStruct((2, 2048), jnp.int32)
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape(8), shape(2), shape(2), segments)
    calls = [
        line
        for line in traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
        if "__cudnn$" in line
    ]
    assert [line.partition("@")[2].partition("(")[0] for line in calls] == [
        "__cudnn$fmhaSoftmax",
        "__cudnn$fmhaSoftmaxBackward",
    ]
    for line in calls:
        assert "PADDING_CAUSAL" in line
        assert r"sliding_window_length\22: 512" in line
        assert r"max_seg_per_batch\22: 16" in line
        assert "tensor<2x16xi32>, tensor<2x16xi32>, tensor<2x17xi32>, tensor<2x17xi32>" in line


def test_a_batch_beyond_32_bit_offsets_is_refused_with_its_size():
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    heads = array(64, 32768, 16, 64)
    with pytest.raises(ParallelError, match="64 rows × length 32768 × 16 heads"):
        jax.eval_shape(cudnn_attention, heads, heads, heads, array(64, 32768, dtype=jnp.int32))
