"""The one train state that travels through the loop, and how it is made in shards."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.model.definition import ModelDefinition, Params
from maxlm.model.parameter import ParameterInfo


class TrainState(NamedTuple):
    """Everything that a step changes.

    The data position is no part of it: the cursor follows from the step by the run's timeline.
    """

    step: Any  # int32, steps taken
    skipped: Any  # int32, steps whose gradients were not finite
    params: Any  # dict by canonical name
    variables: Any  # likewise, what the step moves without a gradient: router biases
    average: Any  # likewise, exponential average of the parameters; empty when none is kept
    opt_state: Any


def abstract_state(
    model: ModelDefinition, optimizer: optax.GradientTransformation, *, average: bool, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of a state: the optimizer's arrays lie as their parameters do."""
    shardings = model.shardings(mesh)
    dtype = model.execution.param_dtype

    def described(arrays: dict[str, ParameterInfo]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(info.shape, dtype, sharding=shardings[name])
            for name, info in arrays.items()
        }

    params, variables = described(model.parameters), described(model.variables)
    everywhere = NamedSharding(mesh, P())

    def lay(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        names = [key for key in keys if key in params and leaf.shape == params[key].shape]
        place = shardings[names[0]] if names else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    opt_state = jax.tree_util.tree_map_with_path(lay, jax.eval_shape(optimizer.init, params))
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    averaged = dict(params) if average else {}
    return TrainState(counter, counter, params, variables, averaged, opt_state)


def fresh_state(
    model: ModelDefinition,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    average: bool,
    mesh: Mesh,
    params: Params | None = None,
) -> TrainState:
    """A state before the first step, made in its shards; from `params` when they are given.

    As `ModelDefinition.init` returns them, `params` hold the model's variables too.
    """
    weights = model.init(seed, mesh) if params is None else params
    params = {name: weights[name] for name in model.parameters}
    variables = {name: weights[name] for name in model.variables}
    layout = abstract_state(model, optimizer, average=average, mesh=mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    rest = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    zero = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    # Copies, so that donating the state never frees one buffer twice.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.params)
    averaged = copy(params) if average else {}
    return TrainState(zero, jax.jit(jnp.copy)(zero), params, variables, averaged, rest)
