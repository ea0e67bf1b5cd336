"""A small model's packed batches, and its state and compiled step on a mesh, for tests of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from maxlm.batch import Batch
from maxlm.config.schema import ScheduleConfig
from maxlm.model.definition import ModelDefinition
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train.schedule import RateSchedule
from maxlm.train.state import TrainState, fresh_state
from maxlm.train.step import make_train_step

SHAPE = {
    "vocab_size": 101,
    "num_layers": 3,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
}


def packed_batches(
    count: int, batch_size: int = 8, length: int = 24, seed: int = 0
) -> Iterator[Batch]:
    """Random tokens in packed documents that end inside rows, with padding at some ends."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tokens = rng.integers(0, 101, (batch_size, length + 1), dtype=np.int32)
        cuts = np.sort(rng.integers(1, length, (batch_size, 2)), axis=1)
        index = np.arange(length)[None]
        segments = 1 + (index >= cuts[:, :1]).astype(np.int32)
        segments = np.where(index >= cuts[:, 1:], 0, segments)
        starts = np.where(index >= cuts[:, :1], cuts[:, :1], 0)
        weights = (segments > 0) & (index != cuts[:, :1] - 1)
        positions = np.where(segments > 0, index - starts, 0).astype(np.int32)
        yield Batch(tokens[:, :-1], tokens[:, 1:], weights.astype(np.float32), segments, positions)


def begin(
    model: ModelDefinition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    rate: Any = None,
    average: bool = False,
    params: Any = None,
    clip_norm: float | None = 1.0,
    compile: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[TrainState, Any]:
    """A state and the compiled step that takes it.

    Args:
        model: with a vocabulary of `SHAPE`'s size.
        optimizer: of its parameters.
        mesh: where they lie.
        rate: the schedule; unset: a warm-up of 4 steps, of 20.
        average: whether the state holds averaged weights.
        params: initial weights on the mesh; unset: drawn from seed 0.
        clip_norm: of the gradients.
        compile: arguments of `jax.jit`.
        **options: of `make_train_step`.
    """
    rate = rate or RateSchedule(ScheduleConfig(), warmup_steps=4, total_steps=20)
    state = fresh_state(model, optimizer, seed=0, average=average, mesh=mesh, params=params)
    bytes_of = np.ones(SHAPE["vocab_size"], np.int32)
    step = make_train_step(
        model, optimizer, rate, clip_norm=clip_norm, token_bytes=bytes_of, **options
    )
    return state, jax.jit(step, **(compile or {}))


def take(
    state: TrainState, step: Any, batches: Iterator[Batch], mesh: Mesh
) -> tuple[TrainState, np.ndarray]:
    """The state after a step on each batch, and each step's loss a token."""
    losses = []
    for batch in batches:
        rows = len(batch.tokens)
        state, metrics = step(state, place_batch(batch, rows, local_rows(rows, mesh), mesh))
        losses.append(float(metrics.nll / metrics.weight))
    return state, np.array(losses)
