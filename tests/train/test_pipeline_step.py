"""A train step whose layers lie over the stages of a pipeline: equal to one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.choices import Rematerialization
from maxlm.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.parallel.stages import Stages, stages_of
from maxlm.train.canonical import canonical_targets, from_canonical, to_canonical
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import abstract_state
from tests.cases import campaign
from tests.train.small_step import SHAPE, begin, packed_batches, take

ROWS = 16
LOCAL = {"attention_pattern": ["local", "global"], "attention_window": 7}


class Trainer:
    """A model on a mesh, its loss and gradients, and a train step."""

    def __init__(self, parallel, *, variant=None, dtype=jnp.float32, layers=8, **execution):
        config = ParallelConfig(**({"fsdp": 1} | parallel))
        sizes = [
            parallel.get(axis, 1) for axis in ("stage", "replica", "fsdp", "context", "tensor")
        ]
        self.mesh = make_mesh(config, jax.devices()[: int(np.prod(sizes))])
        execution = Execution(
            compute_dtype=dtype,
            param_dtype=dtype,
            stages=stages_of(config, self.mesh),
            **execution,
        )
        model = ModelConfig(**(SHAPE | {"num_layers": layers} | (variant or {})))
        self.model = define(model, execution)

    def place(self, batch):
        return place_batch(batch, ROWS, local_rows(ROWS, self.mesh), self.mesh)

    def loss_and_gradients(self):
        """Of one batch, gradients in the model's order of layers."""
        stages = self.model.execution.stages
        with jax.set_mesh(self.mesh):
            params = self.model.init(0, self.mesh)
            program = jax.jit(
                jax.value_and_grad(lambda p, b: self.model.bind(p).loss(b).total),
                out_shardings=(None, self.model.shardings(self.mesh)),
            )
            loss, grads = program(params, self.place(next(packed_batches(1, batch_size=ROWS))))
        grads = {name: np.asarray(grad) for name, grad in grads.items()}
        if stages is not None:
            layers = {name for name in grads if name.startswith("segments")}
            grads |= {name: np.asarray(stages.to_layer_order(grads[name])) for name in layers}
        return float(loss), grads

    def begin(self, kind="adamw", accumulation=1):
        """A fresh state and a step."""
        optimizer = make_optimizer(
            OptimizerConfig(kind=kind, learning_rate=3e-3), self.model.parameters
        )
        self.layout = abstract_state(self.model, optimizer, average=True, mesh=self.mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, self.layout)
        with jax.set_mesh(self.mesh):
            self.state, self.step = begin(
                self.model,
                optimizer,
                self.mesh,
                average=True,
                accumulation=accumulation,
                compile={"donate_argnums": 0, "out_shardings": (places, None)},
            )
        return self

    def losses(self, steps=20):
        with jax.set_mesh(self.mesh):
            batches = packed_batches(steps, batch_size=ROWS)
            self.state, found = take(self.state, self.step, batches, self.mesh)
        return found


@pytest.fixture(scope="module")
def one_device():
    cache = {}

    def get(local=False):
        if local not in cache:
            with jax.enable_x64(True):
                variant = LOCAL if local else None
                cache[local] = Trainer({}, variant=variant, dtype=jnp.float64).loss_and_gradients()
        return cache[local]

    return get


@pytest.mark.parametrize(
    ("parallel", "local", "rematerialization"),
    [
        campaign({"stage": 2}, False, "none"),
        campaign({"stage": 4, "pipeline_rounds": 2, "microbatches": 4}, False, "full"),
        campaign({"stage": 8}, False, "none"),
        campaign({"stage": 2, "fsdp": 4, "pipeline_rounds": 4}, False, "none"),
        ({"stage": 2, "fsdp": 2, "tensor": 2, "pipeline_rounds": 2}, True, "matmuls"),
        campaign({"stage": 4, "replica": 2}, True, "full"),
        ({"stage": 2, "replica": 2, "context": 2, "pipeline_rounds": 2}, False, "none"),
    ],
    ids=str,
)
def test_float64_loss_and_gradients_equal_one_device(
    parallel, local, rematerialization, one_device
):
    wanted_loss, wanted = one_device(local)
    with jax.enable_x64(True):
        trainer = Trainer(
            parallel,
            variant=LOCAL if local else None,
            dtype=jnp.float64,
            rematerialization=Rematerialization(rematerialization),
        )
        loss, grads = trainer.loss_and_gradients()
    assert loss == pytest.approx(wanted_loss, rel=1e-9)
    for name, want in wanted.items():
        scale = np.abs(want).max()
        np.testing.assert_allclose(grads[name], want, rtol=0, atol=1e-9 * scale, err_msg=name)


@pytest.mark.campaign
def test_float32_losses_of_20_steps_equal_one_device_and_the_state_restores_anywhere():
    wanted = Trainer({}).begin("muon").losses()
    trainer = Trainer({"stage": 4, "fsdp": 2, "pipeline_rounds": 2})
    losses = trainer.begin("muon", accumulation=2).losses()
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    saved = to_canonical(trainer.state, trainer.model)
    values = {name: np.asarray(array) for name, array in saved.items()}
    for parallel in ({"stage": 2}, {}, {"fsdp": 8}, {"stage": 4, "pipeline_rounds": 2}):
        other = Trainer(parallel).begin("muon")
        targets = canonical_targets(other.layout, other.model)
        arrays = {name: jax.device_put(v, targets[name].sharding) for name, v in values.items()}
        state = from_canonical(arrays, other.layout, other.model)
        places = jax.tree.map(lambda leaf: leaf.sharding, other.layout)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
        for name, array in to_canonical(state, other.model).items():
            np.testing.assert_array_equal(array, values[name], err_msg=f"{parallel} {name}")


def test_initial_values_are_those_of_one_device_in_the_stages_order():
    one, staged = Trainer({}), Trainer({"stage": 2, "fsdp": 2, "pipeline_rounds": 2})
    wanted = one.model.init(0, one.mesh)
    params = staged.model.init(0, staged.mesh)
    name = "segments.0.blocks.0.mlp.up.kernel"
    assert params[name].sharding.shard_shape(params[name].shape)[0] == 4  # layers of a stage
    np.testing.assert_array_equal(params[name], np.asarray(wanted[name])[[0, 1, 4, 5, 2, 3, 6, 7]])
    for name, value in wanted.items():
        if not name.startswith("segments"):
            np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_a_batch_with_infinite_numbers_skips_the_step_as_on_one_device():
    trainer = Trainer({"stage": 2}, layers=2).begin()
    batch = next(packed_batches(1, batch_size=ROWS))
    weights = np.where(batch.loss_weights > 0, np.inf, 0).astype(np.float32)
    with jax.set_mesh(trainer.mesh):
        before = jax.tree.map(np.asarray, trainer.state.params)
        bad = trainer.place(batch._replace(loss_weights=weights))
        trainer.state, metrics = trainer.step(trainer.state, bad)
        assert int(metrics.skipped) == 1
        jax.tree.map(np.testing.assert_array_equal, trainer.state.params, before)
        trainer.state, metrics = trainer.step(trainer.state, trainer.place(batch))
        assert int(metrics.skipped) == 1 and np.isfinite(metrics.nll)


def test_the_stages_of_a_mesh_are_those_of_its_model():
    assert Trainer({"stage": 2, "microbatches": 4}).model.execution.stages == Stages(2, 1, 4)
    assert Trainer({"fsdp": 2}).model.execution.stages is None
