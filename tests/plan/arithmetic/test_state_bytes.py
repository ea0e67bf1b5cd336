"""State bytes by arithmetic against the arrays that a run lays out."""

from __future__ import annotations

import jax
import pytest

from maxlm.config.load import load_config
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.plan.arithmetic.job import job_of
from maxlm.plan.arithmetic.state_bytes import state_bytes
from maxlm.plan.topology import parse_topology
from maxlm.train.execution import execution_of
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import abstract_state

DENSE = ["model.num_layers=4", "model.embed_dim=64", "model.num_heads=4", "model.vocab_size=300"]
EXPERTS = [*DENSE, "model.num_experts=4", "model.router_bias_rate=0.001"]
STEP = ["data.length=64", "data.batch_size=32", "train.duration=10 steps"]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (DENSE, ["parallel.fsdp=8"]),
        (DENSE, ["parallel.replica=4", "parallel.fsdp=2"]),
        (DENSE, ["parallel.fsdp=2", "parallel.tensor=4", "optimizer.kind=muon"]),
        (DENSE, ["parallel.stage=4", "parallel.fsdp=2"]),
        (DENSE, ["parallel.context=4", "parallel.fsdp=2", "optimizer.average_decay=0.99"]),
        (EXPERTS, ["parallel.expert=4", "parallel.fsdp=2"]),
        (EXPERTS, ["parallel.expert=2", "parallel.tensor=4", "parallel.fsdp=1"]),
    ],
    ids=lambda value: " ".join(o.split(".")[1] for o in value) if isinstance(value, list) else None,
)
def test_state_bytes_are_those_of_the_arrays_of_a_run(model, options):
    config = load_config([], ["parallel.fsdp=1", *model, *STEP, *options])
    job = job_of(config, parse_topology("v5e-8"))
    resolved = job.config
    mesh = make_mesh(resolved.parallel, jax.devices()[:8])
    definition = define(resolved.model, execution_of(resolved, mesh))
    optimizer = make_optimizer(resolved.optimizer, definition.parameters)
    average = resolved.optimizer.average_decay is not None
    state = abstract_state(definition, optimizer, average=average, mesh=mesh)

    def on_a_device(tree):
        leaves = jax.tree.leaves(tree)
        shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
        sizes = [leaf.dtype.itemsize for leaf in leaves]
        return sum(size * _product(shard) for size, shard in zip(sizes, shards, strict=True))

    found = state_bytes(job)
    assert found.parameters == on_a_device((state.params, state.variables))
    assert found.optimizer == on_a_device((state.opt_state, state.average))
    assert found.total == on_a_device(state)


def _product(shape):
    size = 1
    for dim in shape:
        size *= dim
    return size
