"""A fresh state and the compiled train step, for tools that time a step and no run around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maxlm.config.schema import OptimizerConfig
from maxlm.model.definition import ModelDefinition
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import TrainState, fresh_state
from maxlm.train.step import make_train_step


def plain_step(
    model: ModelDefinition,
    optimizer: OptimizerConfig,
    rate: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    *,
    params: dict[str, jax.Array] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Any]:
    """A state and the jitted step that takes it (donated) and a placed batch.

    Args:
        model: its definition; `vocab_size` is known.
        optimizer: how its parameters are moved; gradients are clipped to a norm of 1.
        rate: the factor of the learning rate by step.
        mesh: where the arrays lie.
        params: initial weights on the mesh; unset: drawn from seed 0.
        compiler_options: of XLA.
    """
    rule = make_optimizer(optimizer, model.parameters)
    token_bytes = np.ones(model.config.vocab_size or 0, np.int32)
    step = make_train_step(model, rule, rate, clip_norm=1.0, token_bytes=token_bytes)
    with jax.set_mesh(mesh):
        state = fresh_state(model, rule, seed=0, average=False, mesh=mesh, params=params)
    return state, jax.jit(step, donate_argnums=0, compiler_options=dict(compiler_options or {}))
