"""One config on one topology as numbers: the mesh, the rows of a step, and what a device holds of them.

In: a config as loaded and a `Topology`; out: a `Job`, which everything analytic reads. No device is
described and nothing is compiled, so a search can make thousands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from jax.sharding import AbstractMesh

from maxlm.config.choices import ContextAttention, Rematerialization
from maxlm.config.derive import Resolved
from maxlm.config.derive_model import largest_step, row_lengths
from maxlm.config.mesh_axes import DATA_AXES, MESH_AXES, ROW_AXES, product_of
from maxlm.config.schema import ModelConfig, ParallelConfig, RunConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention.features import Hardware
from maxlm.kernels.context.choose import choose_context_attention
from maxlm.kernels.experts.dispatch import rows_travel
from maxlm.parallel.chips import Chip
from maxlm.parallel.mesh import check_batch, mesh_sizes
from maxlm.parallel.stages import Stages, check_microbatches
from maxlm.plan.resolving import resolve_before_run
from maxlm.plan.topology import Topology


@dataclass(frozen=True)
class Job:
    """A train step on a mesh.

    Attributes:
        resolved: the config without open values, and the run's length.
        topology: where.
        mesh: size of every axis.
        batch_size: rows of a step; of several phases the one with the most tokens.
        length: tokens of a row.
    """

    resolved: Resolved
    topology: Topology
    mesh: dict[str, int]
    batch_size: int
    length: int

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return self.resolved.config

    @property
    def model(self) -> ModelConfig:
        """The resolved model."""
        return self.config.model

    @property
    def chip(self) -> Chip:
        """Of what the topology is made."""
        return self.topology.chip

    @property
    def policy(self) -> Rematerialization:
        """What the backward pass computes again."""
        return self.config.parallel.rematerialization

    @cached_property
    def abstract_mesh(self) -> Any:
        """The mesh without devices, for what asks only for sizes."""
        return AbstractMesh(tuple(self.mesh.values()), tuple(self.mesh))

    def size(self, *axes: str) -> int:
        """Product of the sizes of mesh axes."""
        return math.prod(self.mesh[axis] for axis in axes)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.config.train.accumulation

    @property
    def rows(self) -> int:
        """Rows of a micro-batch that a device computes in its layers."""
        return self.batch_size // self.size(*DATA_AXES) // self.accumulation

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that a device computes in its layers."""
        return self.rows * self.length // self.mesh["context"]

    @property
    def outer_tokens(self) -> float:
        """Tokens of a micro-batch on a device outside of the layers, where stages share the rows."""
        return self.tokens / self.mesh["stage"]

    @property
    def stages(self) -> Stages | None:
        """The pipeline; None where there is but one stage."""
        parallel, count = self.config.parallel, self.mesh["stage"]
        return Stages(count, parallel.pipeline_rounds, parallel.microbatches) if count > 1 else None

    @property
    def microbatches(self) -> int:
        """Parts of a micro-batch that follow each other through the stages; 1 without stages."""
        return 1 if self.stages is None else self.stages.microbatches_of(self.rows)

    @property
    def ticks(self) -> int:
        """How often a device runs a piece of its layers for a micro-batch, the bubble included."""
        stages = self.stages
        return 1 if stages is None else self.microbatches * stages.rounds + stages.count - 1

    @property
    def idle(self) -> float:
        """Ticks over those with work in them: 1 without stages."""
        stages = self.stages
        return 1.0 if stages is None else self.ticks / (self.microbatches * stages.rounds)

    @property
    def tokens_per_step(self) -> int:
        """Of all devices."""
        return self.batch_size * self.length

    @cached_property
    def context_method(self) -> ContextAttention:
        """How attention works where rows lie over several devices, as a run chooses it."""
        assert self.config.train.precision
        return choose_context_attention(
            self.config.parallel.context_attention,
            self.model,
            self.abstract_mesh,
            row_lengths(self.config),
            hardware=self.hardware,
            dtype=self.config.train.precision.value,
        ).method

    @property
    def hardware(self) -> Hardware:
        """As kernels ask for it."""
        # Every GPU of the table is of Ampere or later, which cuDNN's attention takes.
        return Hardware(self.chip.platform, self.chip.device_kind, compute_capability=9.0)

    @property
    def rows_travel(self) -> bool:
        """Whether rows go to their experts one by one, and not all tokens to all devices."""
        asked, visits = self.config.parallel.expert_exchange, self.model.experts_per_token
        return rows_travel(asked, visits, self.mesh["expert"])


def job_of(config: RunConfig, topology: Topology, *, vocab_size: int | None = None) -> Job:
    """The job of a config as loaded.

    Args:
        config: the mesh, batch and length have to divide.
        topology: where.
        vocab_size: where neither the config nor a token store tells.

    Raises:
        ConfigError: the config does not fit itself, or its vocabulary is not known.
        ParallelError: the sizes, the batch or the length do not divide over the mesh.
    """
    sizes = mesh_sizes(config.parallel, topology.num_devices)
    mesh = dict(zip(MESH_AXES, sizes, strict=True))
    resolved = _resolve(config, topology, math.prod(mesh[a] for a in ROW_AXES), vocab_size)
    batch_size, length = largest_step(resolved.config.data)
    job = Job(resolved, topology, mesh, batch_size, length)
    _check(job)
    return job


def _resolve(
    config: RunConfig, topology: Topology, row_shards: int, vocab_size: int | None
) -> Resolved:
    """Resolved as a run does it; once for all layouts, on which no rule looks but for the shards."""
    own = config.parallel
    neutral = config.model_copy(update={"parallel": ParallelConfig()})
    resolved = _resolved(neutral.model_dump_json(), topology, row_shards, vocab_size)
    derived = resolved.config.parallel
    kept = {
        "scan_unroll": own.scan_unroll or derived.scan_unroll,
        "cpu_devices": own.cpu_devices or derived.cpu_devices,
    }
    whole = resolved.config.model_copy(update={"parallel": own.model_copy(update=kept)})
    return replace(resolved, config=whole)


@lru_cache(maxsize=256)
def _resolved(text: str, topology: Topology, row_shards: int, vocab_size: int | None) -> Resolved:
    return resolve_before_run(
        RunConfig.model_validate_json(text),
        num_devices=topology.num_devices,
        platform=topology.chip.platform,
        data_shards=row_shards,
        vocab_size=vocab_size,
    )


def _check(job: Job) -> None:
    """Raise ParallelError where rows, tokens or heads do not divide over the mesh."""
    mesh, accumulation = job.abstract_mesh, job.accumulation
    check_batch(job.batch_size, mesh, accumulation=accumulation)
    if job.stages is not None:
        check_microbatches(job.stages, job.batch_size, mesh, accumulation=accumulation)
    if job.mesh["context"] > 1:
        _ = job.context_method  # refuses lengths and heads that do not divide
    slices = job.topology.slices
    if job.mesh["replica"] % slices:
        raise ParallelError(
            f"mesh {product_of(job.mesh)}: replica {job.mesh['replica']} does not divide by the "
            f"{slices} slices, and no other axis may span slices"
        )
