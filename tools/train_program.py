"""The train program of a config, without a run folder or data: for benchmarks and ahead-of-time compiles.

In: names of presets, overrides and devices (real ones, or those of a described TPU slice); out: what
`maxlm train` would jit, with the shapes and shardings of its state and batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maxlm.batch import Batch
from maxlm.config.derive import Facts, resolve, resolve_model
from maxlm.config.load import load_config
from maxlm.config.schema import RunConfig
from maxlm.model.count import count_non_embedding_parameters, count_parameters
from maxlm.model.definition import ModelDefinition, define
from maxlm.model.rematerialization import check_offload
from maxlm.parallel.axes import sharding
from maxlm.parallel.mesh import batch_multiple, check_batch, make_mesh
from maxlm.train.execution import execution_of
from maxlm.train.optimizer import make_optimizer
from maxlm.train.schedule import RateSchedule
from maxlm.train.state import TrainState, abstract_state, fresh_state
from maxlm.train.step import make_train_step

# Not derived from a token budget: a benchmark trains nothing.
FIXED = ("train.duration=1000 steps", "optimizer.learning_rate=3e-4")


@dataclass(frozen=True)
class TrainProgram:
    """A train step and what it is made of."""

    config: RunConfig
    mesh: Mesh
    model: ModelDefinition
    optimizer: Any
    told: list[str]  # what was chosen, and why

    @cached_property
    def layout(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return abstract_state(self.model, self.optimizer, average=False, mesh=self.mesh)

    @cached_property
    def batch(self) -> Batch:
        """Shapes, dtypes and shardings of a batch."""
        shape = (self.config.data.batch_size, self.config.data.length)
        place = sharding(self.mesh, ("batch", "length"))

        def array(dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        return Batch(*(array(d) for d in (np.int32, np.int32, np.float32, np.int32, np.int32)))

    @cached_property
    def step(self) -> Any:
        """The jitted step; the state is donated."""
        step = make_train_step(
            self.model,
            self.optimizer,
            RateSchedule(self.config.schedule, warmup_steps=10, total_steps=1000),
            clip_norm=self.config.optimizer.clip_norm,
            z_loss=self.config.train.z_loss,
            accumulation=self.config.train.accumulation,
            token_bytes=np.ones(self.config.model.vocab_size or 0, np.int32),
        )
        places = (jax.tree.map(lambda leaf: leaf.sharding, self.layout), None)
        options = dict(self.config.parallel.compiler_options)
        return jax.jit(step, donate_argnums=0, out_shardings=places, compiler_options=options)

    def fresh_state(self) -> TrainState:
        """A state before the first step, on the mesh's devices."""
        return fresh_state(self.model, self.optimizer, seed=0, average=False, mesh=self.mesh)


def build(
    presets: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    devices: list[Any],
    vocab_size: int = 257,
) -> TrainProgram:
    """Resolve a config for `devices` and build its program.

    Args:
        presets: names or paths, later ones win.
        overrides: `key=value`; `data.batch_size` has to be among these or in the presets.
        devices: a mesh is made of all of them.
        vocab_size: of models whose preset leaves it to the tokenizer.

    Raises:
        ConfigError, ParallelError: the config does not fit itself or the devices.
    """
    config = load_config(list(presets), [*FIXED, *overrides])
    mesh = make_mesh(config.parallel, devices)
    vocab_size = config.model.vocab_size or vocab_size
    model = resolve_model(config.model, vocab_size=vocab_size, length=config.data.length)
    facts = Facts(
        parameters=count_parameters(model),
        non_embedding_parameters=count_non_embedding_parameters(model),
        vocab_size=vocab_size,
        train_tokens=None,
        num_devices=mesh.size,
        platform={"cuda": "gpu"}.get(devices[0].platform, devices[0].platform),
        data_shards=batch_multiple(mesh),
    )
    config = resolve(config, facts).config
    assert config.data.batch_size
    check_batch(config.data.batch_size, mesh, accumulation=config.train.accumulation)
    check_offload(config.parallel.rematerialization, mesh)
    told: list[str] = []
    definition = define(config.model, execution_of(config, mesh, told.append))
    optimizer = make_optimizer(config.optimizer, definition.parameters)
    return TrainProgram(config, mesh, definition, optimizer, told)
