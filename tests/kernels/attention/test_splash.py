import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from maxlm.config.choices import AttentionKernel
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.schema import ParallelConfig
from maxlm.kernels.attention import attend
from maxlm.kernels.attention.attend import AttentionSettings, attention
from maxlm.kernels.attention.features import Hardware, hardware_of
from maxlm.kernels.attention.splash import Blocks, choose_blocks, splash_attention
from maxlm.parallel.axes import partition_spec
from maxlm.parallel.mesh import make_mesh
from maxlm.plan.topology import parse_topology
from tests.cases import campaign
from tests.kernels.attention.packed import (
    FEATURES,
    assert_equal_with_gradients,
    packed_batch,
    with_sinks,
    with_values_of,
)

interpreted = partial(splash_attention, interpret=True)


@pytest.mark.parametrize(("kv_heads", "window", "cap"), FEATURES)
def test_equals_the_reference_on_packed_rows(kv_heads, window, cap):
    batch = packed_batch(kv_heads=kv_heads)
    function = partial(interpreted, window=window, logit_cap=cap)
    assert_equal_with_gradients(function, batch, window=window, logit_cap=cap)


@pytest.mark.parametrize(("width", "values"), [(64, 64), (192, 128), (64, 192)])
def test_sinks_and_values_of_another_width_equal_the_reference(width, values):
    batch = with_sinks(with_values_of(packed_batch(width=width), values))
    function = partial(interpreted, window=30)
    assert_equal_with_gradients(function, batch, window=30)


@pytest.mark.parametrize("at_once", [128, 256])
def test_several_blocks_equal_the_reference_in_bfloat16(at_once):
    query, key, value, segments = packed_batch(length=768, width=128, rows=[[130, 200, 438]])
    narrow = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    function = partial(interpreted, blocks=Blocks(256, at_once))
    assert_equal_with_gradients(function, (*narrow, segments), tolerance=0.02)


def test_on_a_mesh_each_device_runs_it_on_its_rows_and_heads(monkeypatch):
    monkeypatch.setitem(attend._IMPLEMENTATIONS, AttentionKernel.SPLASH, interpreted)
    settings = AttentionSettings(hardware=Hardware("tpu"))
    batch = packed_batch(rows=[[70, 186], [256], [1, 255], [100, 100]])
    with jax.set_mesh(make_mesh(ParallelConfig(fsdp=2, expert=2, tensor=2))):

        def sharded(query, key, value, segments, sinks=None):
            return attention(
                query, key, value, segment_ids=segments, sinks=sinks, settings=settings
            )

        assert_equal_with_gradients(sharded, batch)
        assert_equal_with_gradients(sharded, with_sinks(batch))


def test_blocks_follow_length_window_and_width():
    sizes = [choose_blocks(n, None, 256).size for n in (128, 384, 1536, 4096)]
    assert sizes == [128, 128, 512, 1024]
    assert choose_blocks(4096, 512, 256).size == 512
    assert choose_blocks(4096, 4096, 256).size == 1024
    assert choose_blocks(4096, None, 1024).size == 512
    assert choose_blocks(4096, None, 256) == Blocks(1024, at_once=512)
    assert choose_blocks(384, None, 256) == Blocks(128, at_once=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "width", "values", "has_sinks"),
    [
        ("v5e:2x2", 128, 128, False),
        campaign("v5p:2x2x1", 128, 128, False),
        campaign("v6e:2x2", 128, 128, False),
        campaign("v5p:2x2x1", 64, 64, True),  # gpt-oss
        ("v5p:2x2x1", 192, 128, False),  # DeepSeek
    ],
)
def test_it_compiles_for_tpus_inside_a_sharded_program(topology, width, values, has_sinks):
    pytest.importorskip("libtpu")
    devices = parse_topology(topology).devices()
    mesh = make_mesh(ParallelConfig(fsdp=2, tensor=2), devices)
    assert mesh.axis_names == MESH_AXES
    settings = AttentionSettings(hardware=hardware_of(devices[0]))

    def array(*shape, axes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, partition_spec(axes))
        )

    def heads(count, axis, width):
        return array(4, 512, count, width, axes=("batch", "length", axis, "head_dim"))

    # With its names saved, the forward kernel runs once.
    names = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")

    @partial(jax.checkpoint, policy=names)
    def loss(query, key, value, segments, sinks=None):
        features = {"window": 200, "logit_cap": 30.0, "sinks": sinks, "settings": settings}
        out = attention(query, key, value, segment_ids=segments, **features)
        return (out.astype(jnp.float32) ** 2).sum()

    arguments = (
        heads(8, "heads", width),
        heads(4, "kv_heads", width),
        heads(4, "kv_heads", values),
        array(4, 512, axes=("batch", "length"), dtype=jnp.int32),
    )
    if has_sinks:
        arguments = (*arguments, array(8, axes=("heads",), dtype=jnp.float32))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile()
    text = compiled.as_text()
    assert "all-gather" not in text  # rows and heads stay where they are
    kernels = re.findall(r"^ *(?:ROOT )?%splash_mha_([a-z]+)_segmented\S* = ", text, re.MULTILINE)
    assert sorted(kernels) == ["dkv", "dq", "fwd"]
    assert np.isfinite(compiled.memory_analysis().temp_size_in_bytes)
