"""Ulysses with the kernel of a TPU, by interpretation and by TPU's compiler, which needs no TPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from maxlm.config.choices import AttentionKernel, ContextAttention
from maxlm.config.schema import ParallelConfig
from maxlm.kernels.attention import attend
from maxlm.kernels.attention.attend import AttentionSettings
from maxlm.kernels.attention.features import Hardware, hardware_of
from maxlm.kernels.attention.splash import splash_attention
from maxlm.kernels.context.attention import context_attention
from maxlm.parallel.axes import partition_spec
from maxlm.parallel.mesh import make_mesh
from maxlm.plan.topology import parse_topology
from tests.kernels.attention.packed import assert_equal_with_gradients, packed_batch

ulysses = partial(context_attention, method=ContextAttention.ULYSSES)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_each_device_runs_splash_on_whole_rows_of_its_heads(kv_heads, monkeypatch):
    shapes = []

    def interpreted(query, key, *rest, **features):
        shapes.append((query.shape[1:3], key.shape[2]))
        return splash_attention(query, key, *rest, **features, interpret=True)

    monkeypatch.setitem(attend._IMPLEMENTATIONS, AttentionKernel.SPLASH, interpreted)
    settings = AttentionSettings(hardware=Hardware("tpu"))
    with jax.set_mesh(make_mesh(ParallelConfig(fsdp=1, context=4), jax.devices()[:4])):

        def sharded(query, key, value, segments):
            return ulysses(query, key, value, segment_ids=segments, settings=settings)

        assert_equal_with_gradients(sharded, packed_batch(kv_heads=kv_heads))
    assert set(shapes) == {((256, 1), 1)}


@pytest.mark.slow
@pytest.mark.parametrize(("context", "tensor"), [(2, 2), (4, 1)])
def test_it_compiles_for_v5e_and_runs_each_kernel_once(context, tensor):
    pytest.importorskip("libtpu")
    devices = parse_topology("v5e-4").devices()
    mesh = make_mesh(ParallelConfig(fsdp=1, context=context, tensor=tensor), devices)
    settings = AttentionSettings(hardware=hardware_of(devices[0]))

    def array(*shape, axes, dtype=jnp.bfloat16):
        sharding = NamedSharding(mesh, partition_spec(axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def heads(count, axis):
        return array(2, 512, count, 128, axes=("batch", "length", axis, "head_dim"))

    names = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")

    @partial(jax.checkpoint, policy=names)
    def loss(query, key, value, segments):
        out = ulysses(query, key, value, segment_ids=segments, window=200, settings=settings)
        return (out.astype(jnp.float32) ** 2).sum()

    keys, segments = heads(4, "kv_heads"), array(2, 512, axes=("batch", "length"), dtype=jnp.int32)
    with jax.set_mesh(mesh):
        grad = jax.jit(jax.grad(loss, (0, 1, 2)))
        text = grad.lower(heads(8, "heads"), keys, keys, segments).compile().as_text()
    assert "all-to-all" in text
    kernels = re.findall(r"^ *(?:ROOT )?%splash_mha_([a-z]+)_segmented\S* = ", text, re.MULTILINE)
    assert sorted(kernels) == ["dkv", "dq", "fwd"]
