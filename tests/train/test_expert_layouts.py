"""A step of a mixture of experts is the same on every mesh: loss, gradients, biases, loads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxlm.config.choices import ContextAttention
from maxlm.config.schema import (
    ExpertExchange,
    ExpertMatmul,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
)
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.parallel.stages import stages_of
from maxlm.train.optimizer import make_optimizer
from tests.cases import campaign, few
from tests.train.small_step import begin, packed_batches

# A leading dense layer, a shared expert, biases of all kinds; more experts than devices hold one of.
MODEL = {
    "vocab_size": 101,
    "num_layers": 3,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
    "num_experts": 8,
    "experts_per_token": 3,
    "expert_mlp_dim": 16,
    "shared_experts": 1,
    "dense_layers": 1,
    "router_scoring": "sigmoid",
    "router_scale": 2.5,
    "router_bias_rate": 0.01,
    "load_balance_loss": 0.1,
    "router_z_loss": 0.01,
    "mlp_bias": True,
    "init_std": 0.2,  # so that routers prefer some experts clearly
}
LAYOUTS = [
    {"expert": 8, "fsdp": 1},
    {"expert": 4, "fsdp": 2},
    {"expert": 2, "fsdp": 4},
    {"expert": 4, "fsdp": 1, "tensor": 2},
    {"expert": 2, "fsdp": 2, "tensor": 2},
    {"expert": 4, "fsdp": 1, "context": 2},
    {"expert": 2, "fsdp": 2, "context": 2},
    {"expert": 4, "fsdp": 1, "replica": 2},
    {"expert": 2, "fsdp": 2, "replica": 2},
    {"expert": 2, "fsdp": 1, "context": 2, "tensor": 2},
    {"fsdp": 8},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"replica": 8, "fsdp": 1},
]
FEW = [LAYOUTS[4], LAYOUTS[9]]


def step(
    layout,
    *,
    devices=8,
    dtype=jnp.float64,
    variant=None,
    accumulation=1,
    kernels=None,
    method=ContextAttention.ALL_GATHER,
    rows=8,
):
    """Loss, gradients, biases and routing metrics of one step on a mesh."""
    config = ParallelConfig(**layout)
    mesh = make_mesh(config, jax.devices()[:devices])
    kernels, stages = kernels or ExpertKernels(), stages_of(config, mesh)
    execution = Execution(dtype, dtype, experts=kernels, context_attention=method, stages=stages)
    model = define(ModelConfig(**(MODEL | (variant or {}))), execution)
    # Its state after a step is the gradient.
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    weights = _weights(model.config, dtype)
    if stages is not None:
        weights = _of_layers(stages.to_stage_order, weights)
    with jax.set_mesh(mesh):
        weights = jax.device_put(weights, model.shardings(mesh))
        state, train_step = begin(
            model,
            keep,
            mesh,
            rate=_one,
            params=weights,
            clip_norm=None,
            accumulation=accumulation,
        )
        batch = next(packed_batches(1, batch_size=rows))
        batch = place_batch(batch, rows, local_rows(rows, mesh), mesh)
        state, metrics = train_step(state, batch)
        numbers = {
            "loss": metrics.nll / metrics.weight,
            **metrics.routing._asdict(),
            **state.variables,
            **state.opt_state,
        }
        numbers = {name: np.asarray(array) for name, array in numbers.items()}
        return numbers if stages is None else _of_layers(stages.to_layer_order, numbers)


def _of_layers(order, arrays):
    """Arrays with those of layers in another order."""
    return {n: order(a) if n.startswith("segments.") else a for n, a in arrays.items()}


def _one(step):
    return jnp.ones(())


def _weights(config, dtype):
    """Initial weights, made once: `init` gives every mesh the same."""
    key = (config.model_dump_json(), jnp.dtype(dtype).name)
    if key not in _MADE:
        model = define(config, Execution(param_dtype=dtype))
        made = model.init(0, make_mesh(ParallelConfig(), jax.devices()[:1]))
        _MADE[key] = jax.tree.map(np.asarray, made)
    return _MADE[key]


_MADE = {}


@pytest.fixture(scope="module")
def one_device():
    cache = {}

    def get(**options):
        key = str(options)
        if key not in cache:
            cache[key] = step({}, devices=1, **options)
        return cache[key]

    return get


def assert_equal(actual, wanted, tolerance=1e-9):
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            actual[name], value, rtol=0, atol=tolerance * scale, err_msg=name
        )


def test_the_model_of_these_tests_has_everything_that_could_differ(one_device):
    with jax.enable_x64(True):
        numbers = one_device()
    assert numbers["load_min"] < 0.7 < 1.3 < numbers["load_max"]
    assert 1.0 < numbers["load_balance"] < 3.0 and numbers["z"] > 1.0
    biases = numbers["segments.1.blocks.0.mlp.router.bias"]
    assert biases.shape == (2, 8) and (np.abs(biases) == 0.01).any()
    for name, value in numbers.items():
        assert np.abs(value).max() > 0 or name == "dropped", name


@pytest.mark.parametrize("layout", few(LAYOUTS, FEW.__contains__), ids=str)
def test_every_layout_equals_one_device(layout, one_device):
    with jax.enable_x64(True):
        assert_equal(step(layout), one_device())


def test_three_experts_on_each_of_four_shards_equal_one_device(one_device):
    """They cannot change places with parts of their width before they are gathered."""
    variant = {"num_experts": 6}
    with jax.enable_x64(True):
        assert_equal(step({"expert": 2, "fsdp": 4}, variant=variant), one_device(variant=variant))


@pytest.mark.campaign
@pytest.mark.parametrize(
    "layout", [{"expert": 2, "fsdp": 1, "tensor": 2}, {"replica": 4, "fsdp": 1}], ids=str
)
def test_micro_batches_equal_those_of_one_device(layout, one_device):
    with jax.enable_x64(True):
        assert_equal(step(layout, devices=4, accumulation=2), one_device(accumulation=2))


@pytest.mark.parametrize(
    ("layout", "accumulation"),
    [
        ({"stage": 2, "expert": 2, "fsdp": 1, "tensor": 2, "pipeline_rounds": 2}, 2),
        campaign({"stage": 2, "expert": 4, "fsdp": 1}, 1),
        campaign({"stage": 2, "expert": 2, "fsdp": 2}, 2),
        campaign({"stage": 2, "expert": 2, "fsdp": 1, "context": 2}, 1),
    ],
    ids=str,
)
def test_experts_over_a_pipeline_s_stages_equal_one_device(layout, accumulation, one_device):
    """Every layer of a stage is alike, so none is dense; rows are packed."""
    of = {
        "variant": {"num_layers": 4, "dense_layers": 0},
        "accumulation": accumulation,
        "rows": 16,
    }
    with jax.enable_x64(True):
        assert_equal(step(layout, **of), one_device(**of))


# What gpt-oss and DeepSeek have beside, in one model.
BESIDE = {
    "num_layers": 4,
    "dense_layers": 0,
    "num_kv_heads": 4,
    "value_head_dim": 12,
    "kv_latent_dim": 16,
    "query_latent_dim": 24,
    "latent_rope_dim": 4,
    "attention_bias": "all",
    "attention_sinks": True,
    "rope_pattern": [True, False],
    "mlp": "gated_shifted",
    "activation": "quick_gelu",
    "mlp_limit": 0.5,
    "router_logit_bias": True,
    "router_groups": 4,
    "router_groups_per_token": 2,
}


@pytest.mark.campaign
@pytest.mark.parametrize(
    "layout",
    [
        {"expert": 2, "fsdp": 1, "context": 2, "tensor": 2},
        {"stage": 2, "expert": 2, "fsdp": 1, "tensor": 2},
        {"expert": 4, "fsdp": 2},
    ],
    ids=str,
)
def test_latents_sinks_and_groups_equal_one_device(layout, one_device):
    of = {"variant": BESIDE, "rows": 16}
    with jax.enable_x64(True):
        assert_equal(step(layout, **of), one_device(**of))


def test_micro_batches_change_the_load_balance_loss_alone(one_device):
    """It is taken over a micro-batch; everything else is linear in the tokens."""
    linear = {"load_balance_loss": 0.0, "router_z_loss": 0.0}
    with jax.enable_x64(True):
        whole = dict(one_device(variant=linear))
        parts = step({}, devices=1, accumulation=2, variant=linear)
    assert parts.pop("load_balance") > 1.001 * whole.pop("load_balance")
    # Micro-batches with other numbers of tokens weigh their mean by the targets.
    assert parts.pop("z") == pytest.approx(whole.pop("z"), rel=0.02)
    assert_equal(parts, whole)


@pytest.mark.campaign  # tools/compare_layouts.py runs 20 steps of more
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[4], LAYOUTS[12]], ids=str)
def test_float32_losses_equal_one_device(layout, one_device):
    loss = step(layout, dtype=jnp.float32)["loss"]
    np.testing.assert_allclose(loss, one_device(dtype=jnp.float32)["loss"], rtol=1e-5)


@pytest.mark.parametrize("kind", [ExpertMatmul.REFERENCE, ExpertMatmul.RAGGED_DOT], ids=str)
def test_every_grouped_matmul_gives_the_same_step(kind, one_device):
    with jax.enable_x64(True):
        assert_equal(step({}, devices=1, kernels=ExpertKernels(kind)), one_device())


@pytest.mark.parametrize(
    "layout",
    [
        {"expert": 4, "fsdp": 1, "context": 2},
        campaign({"expert": 8, "fsdp": 1}),
        campaign({"expert": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_rows_that_travel_to_their_experts_give_the_same_step(layout, one_device, monkeypatch):
    """With the transfer itself, which a CPU does not have, made of an all-gather."""
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", gathered_ragged_all_to_all)
    kernels = ExpertKernels(exchange=ExpertExchange.ALL_TO_ALL)
    with jax.enable_x64(True):
        assert_equal(step(layout, kernels=kernels), one_device())


def gathered_ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """What `jax.lax.ragged_all_to_all` promises."""
    me = jax.lax.axis_index(axis_name)
    operands, starts, sizes, landings = (
        jax.lax.all_gather(a, axis_name)
        for a in (operand, input_offsets, send_sizes, output_offsets)
    )
    rows = jnp.arange(output.shape[0])
    for sender in range(operands.shape[0]):
        begin = landings[sender, me]
        mine = (rows >= begin) & (rows < begin + sizes[sender, me])
        source = jnp.clip(starts[sender, me] + rows - begin, 0, operand.shape[0] - 1)
        output = jnp.where(mine[:, None], operands[sender][source], output)
        # Both sides must agree on how much travels.
        output = jnp.where(recv_sizes[sender] == sizes[sender, me], output, jnp.nan)
    return output


CAPACITY = {"capacity_factor": 0.75}


def test_a_capacity_drops_visits(one_device):
    with jax.enable_x64(True):
        assert 0.2 < one_device(variant=CAPACITY)["dropped"] < 0.5
        ample = dict(one_device(variant={"capacity_factor": 8 / 3}))
        assert ample["dropped"] == 0
        assert_equal(ample, one_device())


@pytest.mark.parametrize(
    "layout",
    [
        {"expert": 2, "fsdp": 1, "context": 2, "tensor": 2},
        campaign({"expert": 8, "fsdp": 1}),
        campaign({"expert": 2, "fsdp": 2, "replica": 2}),
        campaign({"replica": 8, "fsdp": 1}),
    ],
    ids=str,
)
def test_with_a_capacity_every_layout_equals_one_device(layout, one_device):
    with jax.enable_x64(True):
        assert_equal(step(layout, variant=CAPACITY), one_device(variant=CAPACITY))


def test_a_capacity_counts_tokens_in_their_order_where_the_ring_keeps_another(one_device):
    ring = {"fsdp": 1, "context": 2, "expert": 2}
    with jax.enable_x64(True):
        actual = step(ring, devices=4, variant=CAPACITY, method=ContextAttention.RING)
        assert_equal(actual, one_device(variant=CAPACITY))


def test_a_step_with_bad_gradients_leaves_the_biases():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    model = define(ModelConfig(**(MODEL | {"num_layers": 2})))
    keep = optax.identity()
    state, train_step = begin(model, keep, mesh, rate=_one, clip_norm=None)
    good = next(packed_batches(1))
    bad = good._replace(loss_weights=good.loss_weights * np.inf)
    after_bad, _ = train_step(state, bad)
    after_good, _ = train_step(state, good)
    name = "segments.1.blocks.0.mlp.router.bias"
    assert int(after_bad.skipped) == 1
    assert not np.any(after_bad.variables[name]) and np.any(after_good.variables[name])


def test_muon_orthogonalises_each_expert_by_itself():
    model = define(ModelConfig(**MODEL))
    config = OptimizerConfig(
        kind="muon", learning_rate=1.0, muon_learning_rate=1.0, weight_decay=0.0
    )
    optimizer = make_optimizer(config, model.parameters)
    rng = np.random.default_rng(0)
    grads = {
        n: jnp.asarray(rng.normal(size=i.shape), jnp.float32) for n, i in model.parameters.items()
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name, gain in (("up", 1.0), ("down", np.sqrt(32 / 16))):
        kernel = np.asarray(updates[f"segments.1.blocks.0.mlp.{name}.kernel"])
        assert kernel.shape[:2] == (2, 8)  # layers, experts
        singular = np.linalg.svd(kernel / gain, compute_uv=False)
        assert singular.min() > 0.5 and singular.max() < 1.5
