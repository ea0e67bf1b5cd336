"""How a model is cut into the stages of a pipeline: which layers and which rows go where.

Layers are cut into `stages × rounds` pieces of consecutive layers, dealt out in turn: stage `s` holds
the pieces `s, s + stages, …`, and a row goes around all stages once a round (interleaved stages,
arXiv:2104.04473; circular schedules of praxis and MaxText). Stacked parameters `[L, …]` lie in stage
order, each stage's layers together, so that none of them moves while training. The rows of a batch
are cut into microbatches, as many as a multiple of the stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from maxlm.config.mesh_axes import product_of
from maxlm.config.schema import ParallelConfig
from maxlm.errors import ParallelError
from maxlm.parallel.axes import TABLE, shard_count

# Microbatches per stage that are tried where the config says none, first to last: with four, a
# single round idles for at most a fifth of its ticks (GPipe's rule, arXiv:1811.06965).
MICROBATCHES_PER_STAGE = (4, 3, 2, 1)


@dataclass(frozen=True)
class Stages:
    """The stages of a pipeline.

    Attributes:
        count: stages, at least 2.
        rounds: how often a row goes around them.
        microbatches: as the config asks; None: by `MICROBATCHES_PER_STAGE`.
    """

    count: int
    rounds: int = 1
    microbatches: int | None = None

    def microbatches_of(self, rows: int) -> int:
        """Into how many microbatches `rows` of a data shard are cut.

        A batch that what the config asks for does not divide (of an evaluation) is cut by the rule.

        Raises:
            ParallelError: the rows do not divide by the stages.
        """
        asked = self.microbatches
        if asked is not None and asked % self.count == 0 and rows % asked == 0:
            return asked
        for each in MICROBATCHES_PER_STAGE:
            if rows % (each * self.count) == 0:
                return each * self.count
        raise ParallelError(
            f"{rows} rows of a data shard do not divide into microbatches for {self.count} stages: "
            f"nearest are {_nearest(rows, self.count)}"
        )

    def bubble(self, microbatches: int) -> float:
        """Share of a stage's ticks in which it has nothing to do."""
        return (self.count - 1) / (microbatches * self.rounds + self.count - 1)

    def to_stage_order(self, layers: jax.Array) -> jax.Array:
        """Stacked layers `[L, …]` from the model's order to that in which the stages hold them."""
        return _swapped(layers, self.rounds, self.count)

    def to_layer_order(self, layers: jax.Array) -> jax.Array:
        """The inverse of `to_stage_order`."""
        return _swapped(layers, self.count, self.rounds)

    def check_layers(self, repeats: int, group: int) -> None:
        """Raise ParallelError when layers do not divide over the stages.

        Args:
            repeats: how often a group of layers is repeated.
            group: layers of the group (the length of the attention pattern).
        """
        pieces = self.count * self.rounds
        if repeats % pieces == 0:
            return
        pattern = f" = {repeats} repeats of a pattern of {group}" if group > 1 else ""
        fitting = [n for n in range(1, repeats + 1) if repeats % n == 0]
        below, above = (
            max(n for n in fitting if n < pieces or n == 1),
            [n for n in fitting if n > pieces],
        )
        near = [below, *above[:1]]
        raise ParallelError(
            f"{repeats * group} layers{pattern} do not divide over {self.count} stages × "
            f"{self.rounds} round{'s' * (self.rounds > 1)} = {pieces} pieces: use "
            f"{_nearest(repeats, pieces, group)} layers, or stages × rounds of "
            f"{' or '.join(map(str, near))} (parallel.stage, parallel.pipeline_rounds)"
        )


def stages_of(parallel: ParallelConfig, mesh: Mesh) -> Stages | None:
    """The stages of a mesh; None where it has but one."""
    if mesh.shape["stage"] == 1:
        return None
    return Stages(mesh.shape["stage"], parallel.pipeline_rounds, parallel.microbatches)


def check_microbatches(
    stages: Stages, batch_size: int, mesh: Mesh, *, accumulation: int = 1
) -> int:
    """Into how many microbatches a data shard's rows of a global batch are cut.

    Raises:
        ParallelError: the rows do not divide into the microbatches asked for, or into as many as
            there are stages.
    """
    asked, count = stages.microbatches, stages.count
    if asked is not None and asked % count:
        raise ParallelError(
            f"parallel.microbatches {asked} is no multiple of the {count} stages: nearest "
            f"are {_nearest(asked, count)}"
        )
    shards, least = shard_count(mesh, TABLE["batch"]) * accumulation, asked or count
    if batch_size % (shards * least):
        product = product_of(mesh.shape, axes=TABLE["batch"])
        micro = f" × accumulation {accumulation}" if accumulation > 1 else ""
        raise ParallelError(
            f"global batch {batch_size} does not divide over {shards} shards ({product}{micro}) × "
            f"{least} microbatches for {count} stages: nearest are "
            f"{_nearest(batch_size, shards * least)}"
        )
    return stages.microbatches_of(batch_size // shards)


def _swapped(layers: jax.Array, outer: int, inner: int) -> jax.Array:
    if 1 in (outer, inner):
        return layers
    split = layers.reshape(outer, inner, -1, *layers.shape[1:])
    return split.swapaxes(0, 1).reshape(layers.shape)


def _nearest(number: int, multiple: int, unit: int = 1) -> str:
    below = number // multiple * multiple
    near = [below, below + multiple] if below else [multiple]
    return " or ".join(str(n * unit) for n in near)
