"""Attention over several devices: every method equals the reference, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.choices import ContextAttention
from maxlm.config.schema import ParallelConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention import blocks
from maxlm.kernels.attention.reference import reference_attention
from maxlm.kernels.context import ring
from maxlm.kernels.context.attention import context_attention
from maxlm.kernels.context.order import from_zigzag, to_zigzag
from maxlm.parallel.mesh import make_mesh

FEATURES = {
    "plain": {},
    "window over chunks": {"window": 20},
    "window inside a block, soft-cap": {"window": 3, "logit_cap": 2.0},
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_block_size", lambda length: 4)  # several in every chunk


def packed(batch=2, length=64, heads=8, kv_heads=2, width=8):
    """Documents that end inside shards, one row of a single document, padding at an end."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (batch, length)), axis=1)
    segments[0] = 1
    segments[1:, length - 5 :] = 0
    query, weights = rng.normal(size=(2, batch, length, heads, width))
    key, value = rng.normal(size=(2, batch, length, kv_heads, width))
    return (query, key, value), segments, weights


def on_mesh(mesh, method, arrays, segments, weights, **features):
    """The result and the gradients of a weighted sum of it."""

    def weighted(*arrays):
        tokens, sinks = (*arrays[:3], segments), dict(zip(["sinks"], arrays[3:], strict=False))
        ring = method is ContextAttention.RING
        *rest, ids = to_zigzag(tokens) if ring else tokens
        out = context_attention(*rest, segment_ids=ids, method=method, **sinks, **features)
        out = from_zigzag(out) if ring else out
        return (out * weights).sum(), out

    with jax.set_mesh(mesh):
        return with_gradients(weighted, arrays)


def on_one(arrays, segments, weights, **features):
    def weighted(*arrays):
        sinks = dict(zip(["sinks"], arrays[3:], strict=False))
        out = reference_attention(
            *arrays[:3], **sinks, query_segments=segments, key_segments=segments, **features
        )
        return (out * weights).sum(), out

    return with_gradients(weighted, arrays)


def with_gradients(weighted, arrays):
    every = tuple(range(len(arrays)))
    return jax.jit(jax.value_and_grad(weighted, every, has_aux=True))(*arrays)


def assert_equal(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, wanted)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("method", ["ring", "ulysses", "all_gather"])
def test_every_method_equals_the_reference(method, features, small_blocks):
    mesh = make_mesh(ParallelConfig(fsdp=2, context=4))
    with jax.enable_x64(True):
        case = packed()
        got = on_mesh(mesh, ContextAttention(method), *case, **FEATURES[features])
        assert_equal(got, on_one(*case, **FEATURES[features]))


@pytest.mark.parametrize("method", ["ring", "ulysses", "all_gather"])
def test_sinks_and_values_of_another_width_equal_the_reference(method, small_blocks):
    mesh = make_mesh(ParallelConfig(fsdp=2, context=2, tensor=2))
    with jax.enable_x64(True):
        arrays, segments, _ = packed()
        rng = np.random.default_rng(1)
        values, weights = (rng.normal(size=(*x.shape[:3], 12)) for x in (arrays[2], arrays[0]))
        case = ((*arrays[:2], values, np.linspace(-4, 6, 8)), segments, weights)
        got = on_mesh(mesh, ContextAttention(method), *case, window=20)
        assert_equal(got, on_one(*case, window=20))


@pytest.mark.parametrize(
    ("parallel", "heads", "kv_heads"),
    [
        ({"context": 8}, 8, 8),
        ({"context": 8}, 8, 1),
        ({"context": 2, "fsdp": 2, "tensor": 2}, 8, 2),
        # Neither number divides the other: two devices get two copies of each of three heads.
        ({"context": 2, "fsdp": 2, "replica": 2}, 6, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_heads_of_every_grouping_equal_the_reference(method, parallel, heads, kv_heads):
    mesh = make_mesh(ParallelConfig(**({"fsdp": 1} | parallel)))
    with jax.enable_x64(True):
        case = packed(batch=4, heads=heads, kv_heads=kv_heads)
        assert_equal(on_mesh(mesh, ContextAttention(method), *case), on_one(*case))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_zigzag_gives_every_device_an_early_and_a_late_chunk(count):
    mesh = make_mesh(ParallelConfig(fsdp=-1, context=count))
    chunk = 3
    index = np.arange(8 * 2 * count * chunk).reshape(8, -1)
    with jax.set_mesh(mesh):
        moved = jax.jit(to_zigzag)(index)
        back = jax.jit(from_zigzag)(moved)
    np.testing.assert_array_equal(back, index)
    chunks = np.asarray(moved)[0].reshape(count, 2, chunk)[:, :, 0] // chunk
    assert chunks.tolist() == [[i, 2 * count - 1 - i] for i in range(count)]


def test_zigzag_refuses_a_length_that_does_not_divide():
    mesh = make_mesh(ParallelConfig(fsdp=2, context=4))
    with jax.set_mesh(mesh), pytest.raises(ParallelError, match=r"length 60 .* 56 and 64"):
        jax.jit(to_zigzag)(np.zeros((2, 60)))


def test_the_ring_gives_every_device_the_same_number_of_blocks(small_blocks):
    """Counted as the ring goes, in place of attention."""
    count, length = 8, 128
    mesh = make_mesh(ParallelConfig(fsdp=1, context=count))

    def counted(key, segments):
        queries, keys = ring._own(key, key, key, segments)

        def step(total, keys):
            first, last = blocks.visible(queries, keys, None)
            return total + (last - first).sum()

        return ring.around(step, jnp.zeros((), jnp.int32), keys)[None]

    with jax.set_mesh(mesh):
        spec = jax.P(None, "context")
        work = jax.jit(
            jax.shard_map(
                counted, in_specs=(spec, spec), out_specs=jax.P("context"), check_vma=False
            )
        )(jnp.zeros((1, length, 1, 8)), jnp.ones((1, length), jnp.int32))
    rows = length // 4
    assert len(set(np.asarray(work).tolist())) == 1
    assert int(work.sum()) == rows * (rows + 1) // 2  # the causal half, each block once


def test_memory_of_a_ring_is_linear_in_the_length():
    mesh = make_mesh(ParallelConfig(fsdp=1, context=4, tensor=2))

    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32)
        segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(q, k, v, s):
            out = context_attention(q, k, v, segment_ids=s, method=ContextAttention.RING)
            return out.sum()

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, segments)
            return compiled.compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(16_384), temporaries(65_536)
    assert long < 4.5 * short


def test_a_ring_of_one_device_is_attention(small_blocks):
    mesh = make_mesh(ParallelConfig(fsdp=-1))
    with jax.enable_x64(True):
        case = packed(batch=8)
        got = on_mesh(mesh, ContextAttention.RING, *case)
        assert_equal(got, on_one(*case))
