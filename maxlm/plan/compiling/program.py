"""The train program of a config, without a run folder or data: for plans and for benchmarks.

In: a config and devices (real ones, or those of a described slice); out: what `maxlm train` would jit,
with the shapes and shardings of its state and batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maxlm.batch import Batch
from maxlm.config.derive import Resolved
from maxlm.config.derive_model import largest_step, step_sizes
from maxlm.config.duration import to_steps
from maxlm.config.schema import RunConfig
from maxlm.kernels.attention.features import hardware_of
from maxlm.model.attention_choices import attention_choices
from maxlm.model.count import widest_mlp
from maxlm.model.definition import ModelDefinition, define
from maxlm.model.rematerialization import check_offload
from maxlm.parallel.axes import sharding
from maxlm.parallel.links import link_warnings
from maxlm.parallel.mesh import batch_multiple, check_batch, make_mesh
from maxlm.parallel.stages import check_microbatches
from maxlm.plan.resolving import resolve_before_run
from maxlm.train.execution import execution_of
from maxlm.train.jitted_step import jitted_step
from maxlm.train.optimizer import make_optimizer
from maxlm.train.schedule import RateSchedule
from maxlm.train.state import TrainState, abstract_state, fresh_state

Message = Callable[[str], None]


@dataclass(frozen=True)
class TrainProgram:
    """A train step and what it is made of.

    Attributes:
        resolved: the config without open values, and the run's steps and tokens.
        mesh: of the devices.
        model: its definition.
        optimizer: of the config.
        batch_size: rows of the step; of several phases the one with the most tokens a step.
        length: tokens of a row.
        told: what was chosen, and why.
    """

    resolved: Resolved
    mesh: Mesh
    model: ModelDefinition
    optimizer: Any
    batch_size: int
    length: int
    told: list[str]

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return self.resolved.config

    @cached_property
    def layout(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        average = self.config.optimizer.average_decay is not None
        return abstract_state(self.model, self.optimizer, average=average, mesh=self.mesh)

    @cached_property
    def batch(self) -> Batch:
        """Shapes, dtypes and shardings of a batch."""
        place = sharding(self.mesh, ("batch", "length"))

        def array(dtype: Any) -> jax.ShapeDtypeStruct:
            shape = (self.batch_size, self.length)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        return Batch(*(array(d) for d in (np.int32, np.int32, np.float32, np.int32, np.int32)))

    @cached_property
    def step(self) -> Any:
        """The jitted step; the state is donated."""
        config = self.config
        assert config.schedule.warmup and config.model.vocab_size
        warmup = to_steps(
            config.schedule.warmup,
            tokens_per_step=self.batch_size * self.length,
            examples_per_step=self.batch_size,
            tokens_per_epoch=None,
        )
        rate = RateSchedule(
            config.schedule, warmup_steps=warmup, total_steps=self.resolved.total_steps
        )
        # No two alike, or the compiler would replace the look-up by a constant.
        sizes = np.arange(config.model.vocab_size, dtype=np.int32) % 13
        return jitted_step(
            config, self.model, self.optimizer, rate, layout=self.layout, token_bytes=sizes
        )

    def lower(self) -> Any:
        """The step, traced and lowered for the mesh's devices."""
        # Abstract: a kernel may make constants while it is traced, which no described device can.
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return self.step.lower(self.layout, self.batch)

    def fresh_state(self) -> TrainState:
        """A state before the first step, on the mesh's devices."""
        average = self.config.optimizer.average_decay is not None
        return fresh_state(self.model, self.optimizer, seed=0, average=average, mesh=self.mesh)


def build_program(
    config: RunConfig, devices: list[Any], *, vocab_size: int | None = None
) -> TrainProgram:
    """Resolve a config for `devices` and build its program.

    Args:
        config: as loaded.
        devices: a mesh is made of all of them.
        vocab_size: of models whose preset leaves it to the tokenizer, where no store tells.

    Raises:
        ConfigError, ParallelError: the config does not fit itself or the devices.
        DataError, TokenizerError: a token store that is there cannot be used.
    """
    mesh = make_mesh(config.parallel, devices)
    resolved = resolve_before_run(
        config,
        num_devices=mesh.size,
        platform=hardware_of(mesh.devices.flat[0]).platform,
        data_shards=batch_multiple(mesh),
        vocab_size=vocab_size,
    )
    config = resolved.config
    told: list[str] = []
    told += [
        f"a slow mesh: {text}" for text in link_warnings(mesh.devices, widest_mlp(config.model))
    ]
    batch_size, length = largest_step(config.data)
    sizes = step_sizes(config.data)
    if len(set(sizes)) > 1:
        told.append(f"of {len(sizes)} phases, the one with {batch_size} rows of {length} tokens")
    accumulation = config.train.accumulation
    check_batch(batch_size, mesh, accumulation=accumulation)
    check_offload(config.parallel.rematerialization, mesh)
    model = define(config.model, execution_of(config, mesh, told.append))
    if model.execution.stages is not None:
        check_microbatches(model.execution.stages, batch_size, mesh, accumulation=accumulation)
    choices = attention_choices(config.model, model.execution, length, mesh)
    told += [f"attention ({span} layers): {choice}" for span, choice in choices.items()]
    model.shardings(mesh)
    optimizer = make_optimizer(config.optimizer, model.parameters)
    return TrainProgram(resolved, mesh, model, optimizer, batch_size, length, told)
