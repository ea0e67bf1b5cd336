"""Bytes of the train state on one device, exactly: the shards of the arrays that a run would make.

In: a `Job`; out: bytes by kind. Shapes, number types and shardings come from `abstract_state`, the
run's own; a mesh only divides them, so they are found once a model and optimizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
from jax.sharding import AbstractMesh

from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.schema import ModelConfig, OptimizerConfig, Precision
from maxlm.model.decoder import Execution, segment_plan
from maxlm.model.definition import ModelDefinition, define
from maxlm.model.parameter import ParameterInfo
from maxlm.parallel.axes import TABLE
from maxlm.parallel.stages import Stages
from maxlm.plan.arithmetic.job import Job
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import abstract_state


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one device.

    Attributes:
        parameters: master weights and variables.
        optimizer: the optimizer's state and averaged weights.
        counters: steps taken and skipped.
    """

    parameters: int
    optimizer: int
    counters: int

    @property
    def total(self) -> int:
        """Of the whole state."""
        return self.parameters + self.optimizer + self.counters


@dataclass(frozen=True)
class _Leaf:
    part: str
    shape: tuple[int, ...]
    itemsize: int
    axes: tuple[tuple[str, ...], ...]  # mesh axes of each dim

    def bytes_on(self, mesh: dict[str, int]) -> int:
        shards = (math.prod(mesh[axis] for axis in dim) for dim in self.axes)
        dims = (size // count for size, count in zip(self.shape, shards, strict=True))
        return math.prod(dims) * self.itemsize


def state_bytes(job: Job) -> StateBytes:
    """Bytes of a job's state. Raises ParallelError where a parameter does not divide."""
    definition(job)
    return _bytes(*_key(job), tuple(job.mesh.values()))


@lru_cache(maxsize=4096)
def _bytes(
    model: str, wide: bool, optimizer: str, average: bool, sizes: tuple[int, ...]
) -> StateBytes:
    mesh: Any = AbstractMesh(sizes, MESH_AXES)
    _defined(model, wide).shardings(mesh)
    found = dict.fromkeys(("params", "variables", "average", "opt_state", "counters"), 0)
    for leaf in _leaves(model, wide, optimizer, average):
        found[leaf.part] += leaf.bytes_on(dict(zip(MESH_AXES, sizes, strict=True)))
    return StateBytes(
        parameters=found["params"] + found["variables"],
        optimizer=found["opt_state"] + found["average"],
        counters=found["counters"],
    )


def definition(job: Job) -> ModelDefinition:
    """The model's parameters and what they declare; made once for all meshes.

    Raises ParallelError where the layers do not divide over the stages of a pipeline.
    """
    if job.stages is not None:
        return _staged(*_key(job)[:2], job.stages)
    return _defined(*_key(job)[:2])


def shards_of(info: ParameterInfo, job: Job) -> int:
    """Over how many devices a parameter lies."""
    return math.prod(job.size(*TABLE[axis]) for axis in info.axes)


def _key(job: Job) -> tuple[str, bool, str, bool]:
    config = job.config
    wide = config.train.precision is Precision.FLOAT64
    average = config.optimizer.average_decay is not None
    return config.model.model_dump_json(), wide, config.optimizer.model_dump_json(), average


@lru_cache(maxsize=16)
def _defined(model: str, wide: bool) -> ModelDefinition:
    dtype = jax.numpy.float64 if wide else jax.numpy.float32
    return define(ModelConfig.model_validate_json(model), Execution(param_dtype=dtype))


@lru_cache(maxsize=64)
def _staged(model: str, wide: bool, stages: Stages) -> ModelDefinition:
    whole = _defined(model, wide)
    for pattern, repeats in segment_plan(whole.config):
        stages.check_layers(repeats, len(pattern))
    return whole


@lru_cache(maxsize=16)
def _leaves(model: str, wide: bool, optimizer: str, average: bool) -> tuple[_Leaf, ...]:
    """Every array of a state and the mesh axes of its dims."""
    model_definition = _defined(model, wide)
    config = OptimizerConfig.model_validate_json(optimizer)
    one: Any = AbstractMesh((1,) * len(MESH_AXES), MESH_AXES)
    transformation = make_optimizer(config, model_definition.parameters)
    state = abstract_state(model_definition, transformation, average=average, mesh=one)
    parts = state._asdict()
    parts["counters"] = (parts.pop("step"), parts.pop("skipped"))
    return tuple(
        _Leaf(part, leaf.shape, leaf.dtype.itemsize, _axes(leaf))
        for part, tree in parts.items()
        for leaf in jax.tree.leaves(tree)
    )


def _axes(leaf: Any) -> tuple[tuple[str, ...], ...]:
    spec = tuple(leaf.sharding.spec)
    dims = spec + (None,) * (len(leaf.shape) - len(spec))
    return tuple(() if d is None else (d,) if isinstance(d, str) else tuple(d) for d in dims)
