"""The train step: equal on every mesh, robust to bad gradients, right by optax on one device."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxlm.config.schema import ModelConfig, OptimizerConfig, ParallelConfig, ScheduleConfig
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.train.optimizer import make_optimizer
from maxlm.train.schedule import RateSchedule
from tests.cases import campaign
from tests.train.small_step import SHAPE, begin, packed_batches, take

STEPS = 20


def run(
    parallel,
    *,
    devices=8,
    dtype=jnp.float32,
    kind="adamw",
    accumulation=1,
    variant=None,
    loss_chunk=None,
    steps=STEPS,
):
    """Losses and final parameters after a few steps on a mesh."""
    mesh = make_mesh(ParallelConfig(**parallel), jax.devices()[:devices])
    execution = Execution(compute_dtype=dtype, param_dtype=dtype, loss_chunk=loss_chunk)
    model = define(ModelConfig(**(SHAPE | (variant or {}))), execution)
    optimizer = make_optimizer(OptimizerConfig(kind=kind, learning_rate=3e-3), model.parameters)
    with jax.set_mesh(mesh):
        state, step = begin(
            model, optimizer, mesh, accumulation=accumulation, compile={"donate_argnums": 0}
        )
        state, losses = take(state, step, packed_batches(steps), mesh)
    return losses, {name: np.asarray(x) for name, x in state.params.items()}


LAYOUTS = [
    {"replica": 8, "fsdp": 1},
    {"fsdp": 8},
    {"fsdp": 4, "tensor": 2},
    {"replica": 2, "fsdp": 2, "tensor": 2},
    {"replica": 4, "fsdp": 1, "tensor": 2},
]
FEW = [({"fsdp": 8}, "adamw"), ({"fsdp": 4, "tensor": 2}, "muon")]


@pytest.fixture(scope="module")
def one_device():
    cache = {}

    def get(**options):
        key = tuple(sorted((k, str(v)) for k, v in options.items()))
        if key not in cache:
            cache[key] = run({}, devices=1, **options)
        return cache[key]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        pair if pair in FEW else campaign(*pair)
        for pair in itertools.product(LAYOUTS, ("adamw", "muon"))
    ],
    ids=str,
)
def test_float64_losses_and_parameters_after_20_steps_equal_one_device(layout, kind, one_device):
    with jax.enable_x64(True):
        losses, params = run(layout, dtype=jnp.float64, kind=kind)
        wanted_losses, wanted = one_device(dtype=jnp.float64, kind=kind)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-9)
    for name, value in wanted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(params[name], value, rtol=0, atol=1e-9 * scale, err_msg=name)


@pytest.mark.campaign
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_float32_losses_equal_one_device(layout, one_device):
    losses, _ = run(layout)
    np.testing.assert_allclose(losses, one_device()[0], rtol=1e-5)


LATENT = {
    "num_kv_heads": 4,
    "value_head_dim": 12,
    "kv_latent_dim": 16,
    "query_latent_dim": 24,
    "latent_rope_dim": 4,
    "attention_sinks": True,
}


@pytest.mark.parametrize(
    "layout", [{"fsdp": 4, "tensor": 2}, campaign({"fsdp": 2, "context": 2, "tensor": 2})], ids=str
)
def test_latent_attention_with_sinks_equals_one_device(layout, one_device):
    losses, params = run(layout, variant=LATENT, steps=6)
    wanted_losses, wanted = one_device(variant=LATENT, steps=6)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    sinks = "segments.0.blocks.0.attention.sinks"
    assert np.abs(wanted[sinks]).max() > 1e-3
    np.testing.assert_allclose(params[sinks], wanted[sinks], rtol=1e-3, atol=1e-5)


def test_accumulation_and_loss_chunks_change_nothing(one_device):
    losses, _ = run({}, devices=1, accumulation=4, loss_chunk=48)
    np.testing.assert_allclose(losses, one_device()[0], rtol=1e-5)
    losses, _ = run({"fsdp": 2, "tensor": 2}, devices=4, accumulation=4, loss_chunk=48)
    np.testing.assert_allclose(losses, one_device()[0], rtol=1e-5)


@pytest.mark.parametrize("rematerialization", ["matmuls", "full"])
def test_rematerialization_and_unrolling_change_nothing(rematerialization):
    model = define(ModelConfig(**SHAPE))
    other = define(
        ModelConfig(**SHAPE), Execution(rematerialization=rematerialization, scan_unroll=3)
    )
    params = model.init(0, make_mesh(ParallelConfig(), jax.devices()[:1]))
    batch = next(packed_batches(1))
    grads = [
        jax.jit(jax.grad(lambda p, m=m: m.bind(p).loss(batch).total))(params)
        for m in (model, other)
    ]
    for name in grads[0]:
        np.testing.assert_allclose(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-5)


def test_loss_falls_when_a_batch_is_repeated():
    model = define(ModelConfig(**SHAPE))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(OptimizerConfig(kind=kind, learning_rate=1e-2), model.parameters)
        rate = RateSchedule(ScheduleConfig(), warmup_steps=2, total_steps=60)
        state, step = begin(model, optimizer, mesh, rate=rate)
        batch = next(packed_batches(1))
        losses = []
        for i in range(60):
            state, metrics = step(state, batch)
            losses.append(float(metrics.nll / metrics.weight))
            assert float(metrics.rate) == pytest.approx(float(rate(i)))
        assert losses[0] == pytest.approx(np.log(101), abs=0.2)
        assert losses[-1] < 1.0


def test_a_step_with_bad_gradients_changes_nothing_but_the_counters():
    model = define(ModelConfig(**SHAPE))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), model.parameters)
    state, step = begin(model, optimizer, mesh, average=True, average_decay=0.9)
    good = next(packed_batches(1))
    bad = good._replace(loss_weights=good.loss_weights * np.inf)
    state, _ = step(state, good)
    after, metrics = step(state, bad)
    assert not np.isfinite(metrics.grad_norm)
    assert np.isfinite(metrics.param_norm)  # of the parameters that were kept
    assert (int(after.step), int(after.skipped)) == (2, 1)
    for old, new in zip(
        jax.tree.leaves((state.params, state.average, state.opt_state)),
        jax.tree.leaves((after.params, after.average, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


def test_muon_orthogonalises_each_layer_of_a_stack_and_leaves_the_rest_to_adamw():
    model = define(ModelConfig(**SHAPE))
    optimizer = make_optimizer(
        OptimizerConfig(kind="muon", learning_rate=1.0, muon_learning_rate=1.0, weight_decay=0.0),
        model.parameters,
    )
    rng = np.random.default_rng(0)
    grads = {
        n: jnp.asarray(rng.normal(size=i.shape), jnp.float32) for n, i in model.parameters.items()
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    up = np.asarray(updates["segments.0.blocks.0.mlp.up.kernel"])  # [L, D, F]
    for layer in up:
        singular = np.linalg.svd(layer / np.sqrt(64 / 32), compute_uv=False)
        assert singular.min() > 0.5 and singular.max() < 1.5
    query = np.asarray(updates["segments.0.blocks.0.attention.query.kernel"])  # [L, D, H, C]
    singular = np.linalg.svd(query[0].reshape(32, 32), compute_uv=False)
    assert singular[:-4].min() > 0.5 and singular.max() < 1.5
    # AdamW's first step is the sign of the gradient.
    for name in ("embedding", "final_norm.scale"):
        np.testing.assert_allclose(updates[name], -np.sign(grads[name]), rtol=1e-3, err_msg=name)


def test_the_averaged_weights_follow_the_weights():
    model = define(ModelConfig(**SHAPE))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    state, step = begin(
        model, optax.sgd(0.1), mesh, average=True, clip_norm=None, average_decay=0.5
    )
    average = dict(state.params)
    for taken, batch in enumerate(packed_batches(3)):
        state, _ = step(state, batch)
        decay = min(0.5, (1 + taken) / (10 + taken))
        average = {n: decay * a + (1 - decay) * state.params[n] for n, a in average.items()}
    for name, value in average.items():
        np.testing.assert_allclose(state.average[name], value, rtol=1e-5, atol=1e-7)
