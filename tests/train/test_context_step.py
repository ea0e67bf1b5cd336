"""A train step whose rows lie over several devices: equal to one device's, and no token moves.

Outside of attention, whose methods `tests/kernels/context/` holds against the reference.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.choices import ContextAttention
from maxlm.config.schema import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train.execution import execution_of
from maxlm.train.optimizer import make_optimizer
from maxlm.train.step import _accumulate
from tests.cases import campaign
from tests.train.small_step import SHAPE, begin, packed_batches, take

LENGTH = 48
STEPS = 20
# Eight query heads, so that they divide over every layout's context axis; two key-value heads do not.
WIDE = SHAPE | {"num_heads": 8}
LAYOUTS = [
    {"fsdp": 2, "context": 4},
    {"fsdp": 1, "context": 4, "tensor": 2},
    {"replica": 2, "fsdp": 1, "context": 4},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"fsdp": 1, "context": 8},
]
VARIANTS = {
    "windows and soft-cap": {
        "attention_pattern": ["local", "global"],
        "attention_window": 7,
        "attention_logit_cap": 3.0,
        "norm_placement": "both",
    },
    "learned positions": {"positions": "learned", "max_length": LENGTH, "tie_embeddings": True},
}


def on_mesh(parallel, method, dtype, variant=None):
    """The mesh of a layout ({}: one device) and the model on it."""
    mesh = make_mesh(ParallelConfig(**parallel), None if parallel else jax.devices()[:1])
    execution = Execution(
        compute_dtype=dtype,
        param_dtype=dtype,
        loss_chunk=16,
        context_attention=ContextAttention(method),
    )
    return mesh, define(ModelConfig(**(WIDE | (variant or {}))), execution)


def gradients(parallel, method="all_gather", variant=None, accumulation=1):
    """Loss and gradients of the initial float64 model on a packed batch."""
    mesh, model = on_mesh(parallel, method, jnp.float64, variant)

    def loss_sums(params, variables, batch):
        sums = model.bind(params | variables).loss(batch, z_loss=1e-3)
        return sums.total, sums

    with jax.set_mesh(mesh):
        batch = next(packed_batches(1, length=LENGTH))
        placed = place_batch(batch, 8, local_rows(8, mesh), mesh)
        function = jax.jit(
            lambda p, b: _accumulate(loss_sums, (p, {}), b, accumulation=accumulation),
        )
        grads, sums = function(model.init(0, mesh), placed)
    return float(sums.total / sums.weight), jax.device_get(grads)


def assert_equal(got, wanted):
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-9)
    for name, value in wanted[1].items():
        error = np.linalg.norm(got[1][name] - value) / np.linalg.norm(value)
        assert error < 1e-9, (name, error)


@pytest.fixture(scope="module")
def one_device():
    cache = {}

    def get(variant=None):
        if variant not in cache:
            with jax.enable_x64(True):
                cache[variant] = gradients({}, variant=VARIANTS.get(variant))
        return cache[variant]

    return get


FEW = [
    (LAYOUTS[1], "ulysses"),
    (LAYOUTS[0], "all_gather"),
]
CASES = [(layout, "ring") for layout in LAYOUTS] + [
    (layout, method) for method in ("ulysses", "all_gather") for layout in LAYOUTS[:2]
]
CASES = [case if case in FEW else campaign(*case) for case in CASES]


@pytest.mark.parametrize(("layout", "method"), CASES, ids=str)
def test_float64_loss_and_gradients_equal_one_device(layout, method, one_device):
    with jax.enable_x64(True):
        assert_equal(gradients(layout, method), one_device())


@pytest.mark.parametrize(
    ("variant", "method"),
    [
        ("windows and soft-cap", "ring"),
        ("windows and soft-cap", "ulysses"),
        campaign("windows and soft-cap", "all_gather"),
        campaign("learned positions", "ring"),
    ],
)
def test_windows_soft_cap_and_learned_positions_equal_one_device(variant, method, one_device):
    with jax.enable_x64(True):
        got = gradients({"fsdp": 2, "context": 4}, method, VARIANTS[variant])
        assert_equal(got, one_device(variant))


@pytest.mark.parametrize(
    "layout", [campaign({"fsdp": 2, "context": 4}), {"context": 4, "tensor": 2}], ids=str
)
def test_accumulation_gives_the_gradients_of_one_device(layout, one_device):
    with jax.enable_x64(True):
        layout = {"fsdp": 1} | layout
        assert_equal(gradients(layout, "ring", accumulation=4), one_device())


def losses(parallel, method="all_gather", accumulation=1):
    """Float32 losses of 20 steps."""
    mesh, model = on_mesh(parallel, method, jnp.float32)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3), model.parameters)
    with jax.set_mesh(mesh):
        state, step = begin(model, optimizer, mesh, accumulation=accumulation)
        return take(state, step, packed_batches(STEPS, length=LENGTH), mesh)[1]


@pytest.fixture(scope="module")
def losses_of_one_device():
    return losses({})


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("layout", "method", "accumulation"),
    [
        ({"fsdp": 2, "context": 4}, "ring", 2),
        ({"replica": 2, "fsdp": 1, "context": 4}, "ulysses", 1),
        ({"fsdp": 1, "context": 4, "tensor": 2}, "ring", 1),
        ({"fsdp": 1, "context": 8}, "ring", 1),
    ],
    ids=str,
)
def test_float32_losses_of_20_steps_equal_one_device(
    layout, method, accumulation, losses_of_one_device
):
    found = losses(layout, method, accumulation)
    np.testing.assert_allclose(found, losses_of_one_device, rtol=1e-5)


def test_the_ring_s_logits_come_out_in_the_order_of_the_tokens():
    logits = []
    for parallel, method in [({}, "all_gather"), ({"fsdp": 2, "context": 4}, "ring")]:
        mesh, model = on_mesh(parallel, method, jnp.float32)
        with jax.set_mesh(mesh):
            batch = next(packed_batches(1, length=LENGTH))
            placed = place_batch(batch, 8, local_rows(8, mesh), mesh)
            params = model.init(0, mesh)
            logits.append(np.asarray(jax.jit(lambda p, b: model.bind(p).logits(b))(params, placed)))  # noqa: B023
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-5)


COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(compiled):
    """Kind, elements of the result and name of every collective between devices of a program."""
    for line in compiled.as_text().splitlines():
        found = COLLECTIVE.search(line)
        if found and not is_of_one(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            sizes = [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]
            # Several all-reduces are made one; an all-to-all has a part per device.
            elements = sum(sizes) if found[2] == "all-to-all" else max(sizes)
            name = re.search(r'op_name="([^"]*)"', line)
            yield found[2], elements, name[1] if name else ""


def is_of_one(line):
    """Whether each device is a group of its own, so that nothing moves; jax 0.12 names the axes."""
    by_axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if by_axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", by_axes[1]))
        return all(sizes[axis] == "1" for axis in re.findall(r"'(\w+)'", by_axes[2]))
    return "replica_groups={{0},{1}" in line


@pytest.mark.parametrize(
    ("layout", "method"),
    [({"fsdp": 2, "context": 4}, "ring"), campaign({"fsdp": 1, "context": 8}, "ulysses")],
    ids=str,
)
def test_no_activation_leaves_its_device_but_in_attention_and_the_lookup(layout, method):
    length = 512  # activations of a device have more elements than any parameter
    mesh, model = on_mesh(layout, method, jnp.float32)
    activation = 8 * length * SHAPE["embed_dim"] // 8
    assert activation > 2 * max(np.prod(p.shape[1:]) for p in model.parameters.values())

    def loss(params, batch):
        return model.bind(params).loss(batch).total

    with jax.set_mesh(mesh):
        batch = next(packed_batches(1, length=length))
        placed = place_batch(batch, 8, local_rows(8, mesh), mesh)
        compiled = jax.jit(jax.grad(loss)).lower(model.init(0, mesh), placed).compile()
    found = list(collectives(compiled))
    inside = [c for c in found if "context_attention" in c[2]]
    moved = {kind for kind, elements, _ in inside if elements >= activation // 2}
    assert moved == {"collective-permute" if method == "ring" else "all-to-all"}
    outside = [c for c in found if "context_attention" not in c[2] and c[1] >= activation // 2]
    # The embedding's lookup, each way: from a part of the width of all tokens to all of its own.
    assert {c[:2] for c in outside} == {("all-to-all", activation)}, outside
    axes = sum(size > 1 for size in layout.values())
    assert len(outside) == 2 * axes, outside


def test_the_method_of_a_run_is_told_with_its_reason():
    config = RunConfig(
        model=ModelConfig(**WIDE),
        data=DataConfig(length=512),
        train=TrainConfig(precision="float32"),
    )
    told = []
    execution = execution_of(config, make_mesh(ParallelConfig(fsdp=2, context=4)), told.append)
    assert execution.context_attention is ContextAttention.ULYSSES
    assert told == [
        "attention over context 4: ulysses (work would not hide a ring's transfers: 128 tokens a "
        "device × 8 / 2 heads = 512, under 8192; 8 heads divide by 4)"
    ]
    execution_of(config, make_mesh(ParallelConfig(fsdp=8)), told.append)
    assert len(told) == 1  # where rows lie on one device each there is nothing to tell
