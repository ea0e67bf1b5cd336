"""Compiler options of the hardware presets: known to the installed compilers, and to some effect."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.load import load_config
from maxlm.config.presets import preset_names
from maxlm.parallel.chips import CHIPS
from maxlm.plan.topology import parse_topology

TPU = {
    "hardware/v4": "v4:2x2x1",
    "hardware/v5e": "v5e:2x2",
    "hardware/v5p": "v5p:2x2x1",
    "hardware/v6e": "v6e:2x2",
    "hardware/tpu7x": "tpu7x:2x2x1",
}
GPU = ["hardware/a100", "hardware/h100", "hardware/h200", "hardware/b200"]


def options_of(preset):
    return dict(load_config(preset).parallel.compiler_options)


def test_every_preset_is_checked_here():
    named = {name for name in preset_names() if name.startswith("hardware/")}
    assert named == {*TPU, *GPU, "hardware/cpu"}


@pytest.mark.parametrize("preset", GPU)
def test_options_for_a_gpu_are_names_that_xla_knows(preset):
    # The names are of one table for all of XLA, whatever it compiles for.
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    assert options_of(preset)
    lowered.compile(compiler_options=options_of(preset))
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_enable_latency_hiding_schedule": True})


def sharded_step(topology):
    """Gradients of three scanned MLPs whose weights lie over the devices, lowered for a slice."""
    pytest.importorskip("libtpu")
    devices = np.array(parse_topology(topology).devices())
    mesh = Mesh(devices, ("fsdp",), axis_types=(AxisType.Auto,))

    def array(*shape, axes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    weights = (
        array(3, 256, 512, axes=(None, "fsdp")),
        array(3, 512, 256, axes=(None, None, "fsdp")),
    )
    rows = array(2 * len(devices), 128, 256, axes=("fsdp",), dtype=jnp.bfloat16)

    def loss(weights, x):
        def block(x, layer):
            up, down = (w.astype(jnp.bfloat16) for w in layer)
            return x + jax.nn.silu(x @ up) @ down, None

        return jnp.square(jax.lax.scan(block, x, weights)[0].astype(jnp.float32)).mean()

    def step(weights, x):
        return jax.tree.map(lambda w, d: w - d, weights, jax.grad(loss)(weights, x))

    places = jax.tree.map(lambda w: w.sharding, weights)
    return jax.jit(step, donate_argnums=0, out_shardings=places).lower(weights, rows)


@pytest.mark.slow
@pytest.mark.parametrize("preset", TPU)
def test_options_for_a_tpu_are_taken_by_its_compiler_and_do_what_their_comments_say(preset):
    lowered, options = sharded_step(TPU[preset]), options_of(preset)
    text = lowered.compile(compiler_options=options).as_text()
    plain = lowered.compile().as_text() if options else text
    if "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter" in options:
        assert re.search(r" reduce-scatter\(", text) and not re.search(r" reduce-scatter\(", plain)


@pytest.mark.slow
def test_an_option_that_the_compiler_does_not_know_is_refused():
    with pytest.raises(Exception, match="No such compile option"):
        sharded_step("v5e:2x2").compile(compiler_options={"xla_tpu_scoped_vmem_limit": 1})


def test_every_preset_is_of_a_chip_whose_constants_are_known():
    assert {preset.removeprefix("hardware/") for preset in [*TPU, *GPU]} == set(CHIPS)
