import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ParallelConfig
from maxlm.kernels.cross_entropy import cross_entropy
from maxlm.parallel.axes import sharding
from maxlm.parallel.mesh import make_mesh


def _plain(hidden, table, targets, weights, vocab_size, cap, z_loss):
    logits = (hidden @ table.T)[..., :vocab_size]
    if cap:
        logits = cap * jnp.tanh(logits / cap)
    log_z = jax.nn.logsumexp(logits, -1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return ((nll + z_loss * log_z**2) * weights).sum(), (nll * weights).sum()


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk", [None, 16, 5])
def test_loss_and_gradients_equal_the_plain_softmax(cap, z_loss, chunk):
    rng = np.random.default_rng(0)
    batch, length, width, vocab, padded = 3, 24, 8, 50, 64
    hidden = jnp.asarray(rng.normal(size=(batch, length, width)) * 3, jnp.float32)
    table = jnp.asarray(rng.normal(size=(padded, width)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab, (batch, length)), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 2, (batch, length)), jnp.float32)

    def ours(h, t):
        sums = cross_entropy(
            h, t, targets, weights, vocab_size=vocab, logit_cap=cap, z_loss=z_loss, chunk=chunk
        )
        return sums.total, sums

    def plain(h, t):
        return _plain(h, t, targets, weights, vocab, cap, z_loss)

    (total, sums), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, table)
    (wanted, nll), wanted_grads = jax.value_and_grad(plain, (0, 1), has_aux=True)(hidden, table)
    np.testing.assert_allclose(total, wanted, rtol=2e-6)
    np.testing.assert_allclose(sums.nll, nll, rtol=2e-6)
    assert sums.weight == weights.sum()
    for got, want in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_padded_vocabulary_rows_get_no_gradient():
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    targets = jnp.zeros((2, 4), jnp.int32)

    def loss(t):
        return cross_entropy(hidden, t, targets, jnp.ones((2, 4)), vocab_size=10).total

    assert not np.any(jax.grad(loss)(table)[10:])


def test_no_array_of_all_logits_exists_in_the_compiled_program():
    batch, length, width, vocab = 4, 2048, 16, 4096

    def loss(h, t):
        targets = jnp.zeros((batch, length), jnp.int32)
        weights = jnp.ones((batch, length))
        return cross_entropy(h, t, targets, weights, vocab_size=vocab, chunk=128).total

    shapes = [
        jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
    ]
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    all_logits = batch * length * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_logits / 8


def _on_mesh(sizes, batch=16, length=64, width=32, vocab=256, chunk=16):
    """The compiled gradient on a mesh of 8 devices, tokens over its data axes."""
    mesh = make_mesh(ParallelConfig(**sizes))

    def loss(hidden, table, targets, weights):
        return cross_entropy(hidden, table, targets, weights, vocab_size=vocab, chunk=chunk).total

    def shape(dims, axes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding(mesh, axes))

    shapes = [
        shape((batch, length, width), ("batch", "length", "activation")),
        shape((vocab, width), ("vocab", "embed")),
        shape((batch, length), ("batch", "length"), jnp.int32),
        shape((batch, length), ("batch", "length")),
    ]
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile(), shapes


MESHES = [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"replica": 2, "fsdp": 4}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_no_chunk_moves_the_table_or_its_gradient_between_devices(sizes):
    compiled, _ = _on_mesh(sizes)
    collectives = [
        line
        for line in compiled.as_text().splitlines()
        if re.search(r"= .*(all-reduce|all-gather|reduce-scatter|all-to-all)(-start)?\(", line)
    ]
    inside = [line for line in collectives if "while/body" in line.split("op_name=")[-1]]
    assert collectives
    for line in inside:  # a chunk's own hidden gradients are summed over `tensor`
        shapes = re.findall(r"f32\[([\d,]+)\]", line.split(" = ")[1].split("(")[0])
        assert all(np.prod([int(n) for n in s.split(",")]) <= 16 * 32 for s in shapes), line


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_gives_the_gradients_of_one_device(sizes):
    compiled, shapes = _on_mesh(sizes)
    rng = np.random.default_rng(3)
    values = [
        rng.normal(size=s.shape).astype(np.float32)
        if s.dtype == jnp.float32
        else rng.integers(0, 256, s.shape, dtype=np.int32)
        for s in shapes
    ]
    total, grads = compiled(
        *[jax.device_put(v, s.sharding) for v, s in zip(values, shapes, strict=True)]
    )
    hidden, table, targets, weights = map(jnp.asarray, values)

    def plain(h, t):
        return _plain(h, t, targets, weights, 256, None, 0.0)[0]

    wanted, wanted_grads = jax.value_and_grad(plain, (0, 1))(hidden, table)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    for got, want in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
