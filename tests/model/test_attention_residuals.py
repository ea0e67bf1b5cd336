"""What attention's backward pass needs is named in every path, so that policies can keep it.

By the program's jaxpr: splash is traced for a TPU and never run.
"""

import jax
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.choices import ContextAttention, Rematerialization
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.kernels.attention.features import Hardware
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh

SHAPE = {
    "vocab_size": 101,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_dim": 64,
}
BOTH = {"attention_out", "attention_lse"}
TPU, CPU = Hardware("tpu", "TPU v5e"), Hardware("cpu")
ULYSSES, RING = ContextAttention.ULYSSES, ContextAttention.RING
# Devices of a row, method over them, hardware, and what is named; the splash kernel has one name for
# its two residuals.
PATHS = {
    "chunked": (1, RING, CPU, BOTH),
    "splash": (1, RING, TPU, {"attention_out"}),
    "ring": (4, RING, CPU, BOTH),
    "all_gather": (4, ContextAttention.ALL_GATHER, CPU, BOTH),
    "ulysses by chunked": (4, ULYSSES, CPU, BOTH),
    "ulysses by splash": (4, ULYSSES, TPU, {"attention_out"}),
}


def gradient(path, policy, **model):
    """The jaxpr of a model's gradient on two rows of 128 tokens."""
    context, method, hardware, _ = PATHS[path]
    mesh = make_mesh(ParallelConfig(fsdp=1, context=context), jax.devices()[:context])
    execution = Execution(context_attention=method, hardware=hardware, rematerialization=policy)
    model = define(ModelConfig(**(SHAPE | model)), execution)
    shapes = {n: jax.ShapeDtypeStruct(i.shape, "float32") for n, i in model.parameters.items()}
    ids, weights = np.ones((2, 128), np.int32), np.ones((2, 128), np.float32)
    batch = Batch(ids, ids, weights, ids, ids)  # only shapes matter: nothing is computed
    with jax.set_mesh(mesh):
        return jax.make_jaxpr(jax.grad(lambda p: model.bind(p).loss(batch).total))(shapes)


def equations(jaxpr):
    """All equations of a program whose results are read; a kernel's own are left out.

    jax leaves a kernel in the program whose results nobody reads, and XLA drops it.
    """
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    read |= {id(v) for v in jaxpr.outvars}
    for equation in jaxpr.eqns:
        if not any(id(v) in read for v in equation.outvars):
            continue
        yield equation
        if equation.primitive.name == "pallas_call":
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def attention_steps(jaxpr):
    """Matmuls of activations by activations (they have batch dims), and kernels."""
    total = 0
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name == "dot_general":
            total += bool(equation.params["dimension_numbers"][1][0])
        total += equation.primitive.name == "pallas_call"
    return total


@pytest.mark.parametrize("path", PATHS)
def test_no_policy_but_full_runs_the_forward_of_attention_twice(path):
    found = {
        p: gradient(path, Rematerialization(p)) for p in ("none", "matmuls", "attention", "full")
    }
    names = {
        equation.params["name"]
        for equation in equations(found["none"].jaxpr)
        if equation.primitive.name == "name"
    }
    assert {name for name in names if name in BOTH} == PATHS[path][3]
    steps = {policy: attention_steps(jaxpr) for policy, jaxpr in found.items()}
    assert 0 < steps["none"] == steps["matmuls"] == steps["attention"] < steps["full"], steps


def exchanges(jaxpr):
    """All-to-alls of activations in a program."""
    return sum(e.primitive.name == "all_to_all" for e in equations(jaxpr.jaxpr))


@pytest.mark.parametrize("policy", [Rematerialization.MATMULS, Rematerialization.ATTENTION])
def test_ulysses_sends_again_only_its_output(policy):
    path = "ulysses by splash"
    without = exchanges(gradient(path, Rematerialization.NONE))
    assert without == 8  # queries, keys, values and the output, there and their gradients back
    # The gradient of the output projection needs the output, of which the kernel's own is kept. Two
    # key-value heads go to four devices: they are kept as they come.
    assert exchanges(gradient(path, policy)) == without + 3
    assert exchanges(gradient(path, policy, num_kv_heads=4)) == without + 1
    # A norm's input is kept instead of queries and keys.
    assert exchanges(gradient(path, policy, num_kv_heads=4, qk_norm=True)) == without + 3
    assert exchanges(gradient(path, Rematerialization.FULL)) == without + 4
