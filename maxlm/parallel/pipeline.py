"""The circular schedule of a pipeline: a scan over ticks in which every stage runs at once.

In: a function of a stage's layers, their stacked parameters, the rows of a batch and what goes with
the rows; out: the rows after all layers. In a tick each stage runs its layers on its microbatch, then
all microbatches move on by one stage, from the last to the first (GSPMD's way, arXiv:2105.04663): a
`vmap` over a dim that lies over the stages, and a rotation of that dim. JAX differentiates it; the
backward pass is the pipeline backwards.

Microbatches enter in groups of as many as there are stages. A group goes through all its rounds
before the next enters (as in Megatron's interleaved schedule, arXiv:2104.04473), so what leaves the
last stage is what the first needs next, and nothing has to wait in a buffer. Stage `s` at tick `t` is
at its own tick `u = t - s`, which is microbatch `u % stages` of round `u % (stages × rounds) // stages`
of group `u // (stages × rounds)`; ticks before its first and after its last microbatch are the bubble.

Rows that wait or are done lie spread over the stages, microbatch `i` of each group with stage `i`.
When a group enters, its microbatches go towards the first stage, one rotation a tick, and what is
done of the group before takes their places.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.errors import ParallelError
from maxlm.parallel.axes import constrain, mesh_axis, mesh_shards
from maxlm.parallel.stages import Stages

StageFunction = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
Policy = Callable[..., Any]


def pipelined(
    stages: Stages,
    run: StageFunction,
    parameters: Any,
    x: jax.Array,
    beside: Any,
    *,
    axes: tuple[str, ...],
    policy: Policy | None = None,
) -> tuple[jax.Array, Any]:
    """Run all layers on all rows.

    Args:
        stages: how layers and rows are cut.
        run: `(parameters, x, beside) -> (x, sums)` of a piece of consecutive layers: of stacked
            parameters `[layers of a piece, …]`, on rows of a microbatch. `sums` is a pytree of
            arrays `[layers of a piece, …]` that are added up over microbatches; None for none.
        parameters: stacked `[L, …]`, in stage order.
        x: `[B, …]`.
        beside: a pytree; arrays `[B, …]` in it go with the rows, all else is the same for all rows.
        axes: logical axes of x's dims after the first.
        policy: what `jax.checkpoint` keeps of a tick, where there are rounds; None: only x. Without
            a checkpoint a copy of the layers' parameters would be kept of every tick.

    Returns:
        x after all layers and the sums `[L, …]` in stage order.
    """
    cut = _Cut(stages, x.shape[0])
    pieces = jax.tree.map(cut.pieces_of, parameters)
    leaves, structure = jax.tree.flatten(beside)
    with_rows = [isinstance(a, (jax.Array, np.ndarray)) and a.ndim > 0 for a in leaves]
    streams = [cut.microbatches_of(a) for a, own in zip(leaves, with_rows, strict=True) if own]

    def one_stage(piece: Any, x: jax.Array, now: _Now) -> tuple[jax.Array, Any]:
        # Zeros in the bubble, which no model makes NaN of: of what came around it might.
        x = _kept_if(now.busy, x)
        own = iter([_at(stream, now.microbatch) for stream in streams])
        given = [next(own) if rows else a for a, rows in zip(leaves, with_rows, strict=True)]
        piece = jax.tree.map(lambda a: _at(a, now.round) if stages.rounds > 1 else a[0], piece)
        x, sums = run(piece, x, jax.tree.unflatten(structure, given))
        return x, jax.tree.map(partial(_kept_if, now.busy), sums)

    every_stage = jax.vmap(one_stage, spmd_axis_name=mesh_axis("stages"))
    if stages.rounds > 1:
        every_stage = jax.checkpoint(every_stage, policy=policy, prevent_cse=False)

    def tick(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        arrived, rows, total = carry
        now = cut.now(t)
        x, sums = every_stage(pieces, arrived, now)
        arrived = jnp.roll(constrain(x, "stages", "batch", *axes), 1, axis=0)
        arrived, rows = cut.exchange(arrived, rows, t + 1, axes)
        total = jax.tree.map(partial(_add_in_round, now.round), total, sums)
        return (arrived, rows, total), None

    rows = constrain(cut.rows_of(x), "stages", "groups", "batch", *axes)
    arrived = jnp.zeros_like(rows[:, 0])
    arrived, rows = cut.exchange(arrived, rows, jnp.int32(0), axes)
    _, sums = jax.eval_shape(every_stage, pieces, arrived, cut.now(jnp.int32(0)))
    total = jax.tree.map(
        lambda s: jnp.zeros((stages.count, stages.rounds, *s.shape[1:]), s.dtype), sums
    )
    ticks = jnp.arange(cut.microbatches * stages.rounds + stages.count - 1, dtype=jnp.int32)
    (_, rows, total), _ = jax.lax.scan(tick, (arrived, rows, total), ticks)
    sums = jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), total)
    return constrain(cut.whole(rows), "rows", *axes), sums


class _Now(NamedTuple):
    """What each stage does in a tick."""

    busy: jax.Array  # [stages] bool; false in the bubble
    microbatch: jax.Array  # [stages] int32
    round: jax.Array  # [stages] int32


class _Cut:
    """The rows of a batch in microbatches: `B = data shards × stages × groups × rows` in this order.

    Each data shard has a part of every microbatch, and each stage a part of the data shard's rows.
    """

    def __init__(self, stages: Stages, batch_size: int):
        self._stages = stages
        self._shards = mesh_shards("batch")
        if batch_size == 0 or batch_size % self._shards:
            near = batch_size // self._shards * self._shards
            nearest = [n for n in (near, near + self._shards) if n]
            raise ParallelError(
                f"{batch_size} rows do not divide over {self._shards} data shards of a pipeline: "
                f"nearest are {' and '.join(map(str, nearest))}"
            )
        self.microbatches = stages.microbatches_of(batch_size // self._shards)
        self._groups = self.microbatches // stages.count

    def now(self, t: jax.Array) -> _Now:
        """What the stages do in tick `t`."""
        count, rounds = self._stages.count, self._stages.rounds
        own = t - jnp.arange(count, dtype=jnp.int32)
        busy = (own >= 0) & (own < self.microbatches * rounds)
        group, within = jnp.divmod(jnp.where(busy, own, 0), count * rounds)
        return _Now(busy, group * count + within % count, within // count)

    @partial(jax.checkpoint, static_argnums=(0, 4), prevent_cse=False)  # as in `_kept_if`
    def exchange(
        self, arrived: jax.Array, rows: jax.Array, t: jax.Array, axes: tuple[str, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Before tick `t`: where a microbatch enters, it takes the place of the one that is done.

        Args:
            arrived: `[stages, rows, …]`, the first stage's from the last.
            rows: `[stages, groups + 1, rows, …]`, waiting and done.
            t: the tick to come.
            axes: logical axes of x's dims after the first.

        Returns:
            What the stages run on, and the rows.
        """
        count = self._stages.count
        group, within = jnp.divmod(t, count * self._stages.rounds)
        enters = within < count
        first = jnp.arange(count).reshape(-1, *[1] * (arrived.ndim - 1)) == 0
        slot = jax.lax.dynamic_index_in_dim(rows, group, 1, keepdims=False)
        turned = constrain(jnp.where(first, arrived, slot), "stages", "batch", *axes)
        turned = jnp.where(enters, jnp.roll(turned, -1, axis=0), slot)
        rows = jax.lax.dynamic_update_index_in_dim(rows, turned, group, 1)
        return jnp.where(first & enters, slot, arrived), rows

    def pieces_of(self, layers: jax.Array) -> jax.Array:
        """`[L, …]` in stage order → `[stages, rounds, layers of a piece, …]`."""
        return layers.reshape(self._stages.count, self._stages.rounds, -1, *layers.shape[1:])

    def rows_of(self, x: jax.Array) -> jax.Array:
        """`[B, …]` → `[stages, groups + 1, rows, …]`, the last group empty."""
        split = self._split(x).transpose(1, 2, 0, 3, *range(4, x.ndim + 3))
        rows = split.reshape(*split.shape[:2], -1, *x.shape[1:])
        return jnp.pad(rows, [(0, 0), (0, 1)] + [(0, 0)] * x.ndim)

    def whole(self, rows: jax.Array) -> jax.Array:
        """The inverse of `rows_of`, of done rows, which lie one group further on."""
        split = rows[:, 1:].reshape(*self._sizes[1:3], self._shards, -1, *rows.shape[3:])
        split = split.transpose(2, 0, 1, 3, *range(4, split.ndim))
        return split.reshape(-1, *rows.shape[3:])

    def microbatches_of(self, array: jax.Array) -> jax.Array:
        """`[B, …]` → `[microbatches, rows, …]`, on every stage."""
        split = self._split(array).transpose(2, 1, 0, 3, *range(4, array.ndim + 3))
        return split.reshape(self.microbatches, -1, *array.shape[1:])

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self._shards, self._stages.count, self._groups

    def _split(self, array: jax.Array) -> jax.Array:
        return array.reshape(*self._sizes, -1, *array.shape[1:])


def _at(stacked: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, index, 0, keepdims=False)


@partial(jax.checkpoint, prevent_cse=False)
def _kept_if(condition: jax.Array, array: jax.Array) -> jax.Array:
    """`array`, or zeros. Else a mask as large as the array would be kept of every tick."""
    return jnp.where(condition, array, 0)


def _add_in_round(rounds: jax.Array, total: jax.Array, sums: jax.Array) -> jax.Array:
    """Add `sums [stages, …]` to each stage's round in `total [stages, rounds, …]`."""
    return total.at[jnp.arange(len(rounds)), rounds].add(sums)
