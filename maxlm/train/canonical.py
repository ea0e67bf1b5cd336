"""Between the train state and what a checkpoint holds: named arrays that no layout shows in.

Vocabulary padding is removed on the way out and put back (as zeros, which it is) on the way in; the
layers of a pipeline with several rounds are put into the model's order, and back into the stages'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.model.decoder import padded_vocab
from maxlm.model.definition import ModelDefinition
from maxlm.model.parameter import ParameterInfo
from maxlm.parallel.stages import Stages
from maxlm.train.state import TrainState

Arrays = dict[str, Any]


def to_canonical(state: TrainState, model: ModelDefinition) -> Arrays:
    """Arrays of a state by canonical name (`params.…`, `variables.…`, `optimizer.…`, …)."""
    named, declared = _flatten(state), _declared(state, model)
    changed = {n: a for n, a in named.items() if _differs(declared.get(n), model)}
    if changed:
        targets = {name: _unpadded(a, declared[name], model) for name, a in changed.items()}
        shapes = tuple((name, t.shape, t.sharding) for name, t in targets.items())
        named.update(_converter(shapes, model.execution.stages)(changed))
    return named


@functools.lru_cache(maxsize=8)
def _converter(
    targets: tuple[tuple[str, tuple[int, ...], Any], ...], stages: Stages | None
) -> Callable[[Arrays], Arrays]:
    """A program that cuts padded arrays to shapes and puts the others' layers into order.

    It is kept, so that only the first save compiles it.
    """
    shapes = {name: shape for name, shape, _ in targets}

    def convert(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if array.shape != shape:
            return jax.lax.slice(array, (0,) * array.ndim, shape)
        assert stages is not None
        return stages.to_layer_order(array)

    return jax.jit(
        lambda arrays: {name: convert(a, shapes[name]) for name, a in arrays.items()},
        out_shardings={name: sharding for name, _, sharding in targets},
    )


def canonical_targets(
    layout: TrainState, model: ModelDefinition
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a checkpoint of this state holds: shape, dtype and where to restore it to."""
    declared = _declared(layout, model)
    leaves = _flatten(layout).items()
    return {name: _unpadded(leaf, declared.get(name), model) for name, leaf in leaves}


def from_canonical(arrays: Arrays, layout: TrainState, model: ModelDefinition) -> TrainState:
    """The state of restored arrays, padded again and laid out as `layout` says."""
    targets, declared = _flatten(layout), _declared(layout, model)
    changed = {
        n: a
        for n, a in arrays.items()
        if isinstance(a, jax.Array) and _differs(declared.get(n), model)
    }
    if changed:
        stages = model.execution.stages

        def convert(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            if array.shape != shape:
                missing = [(0, t - s) for s, t in zip(array.shape, shape, strict=True)]
                return jnp.pad(array, missing)
            assert stages is not None
            return stages.to_stage_order(array)

        program = jax.jit(
            lambda given: {name: convert(a, targets[name].shape) for name, a in given.items()},
            out_shardings={name: targets[name].sharding for name in changed},
        )
        arrays = arrays | program(changed)
    leaves, structure = jax.tree_util.tree_flatten_with_path(layout)
    return jax.tree.unflatten(structure, [arrays[_name(path)] for path, _ in leaves])


def _flatten(state: TrainState) -> dict[str, Any]:
    return {_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _name(path: tuple) -> str:
    parts = []
    for key in path:
        for attribute in ("name", "key", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return ".".join(["optimizer" if parts[0] == "opt_state" else parts[0], *parts[1:]])


def _declared(state: TrainState, model: ModelDefinition) -> dict[str, ParameterInfo]:
    """The parameters and variables that arrays of the state are or go with, by canonical name.

    Whatever goes with one (its average, its moments) lies in a dict under its name and has its shape.
    """
    declared = model.parameters | model.variables
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        info = declared.get(str(getattr(path[-1], "key", "")))
        if info is not None and leaf.shape == info.shape:
            found[_name(path)] = info
    return found


def _differs(info: ParameterInfo | None, model: ModelDefinition) -> bool:
    """Whether an array of the state is another than a checkpoint's."""
    stages = model.execution.stages
    reordered = stages is not None and stages.rounds > 1 and info and "layers" in info.axes
    return bool(reordered) or _vocab_dim(info, model) is not None


def _vocab_dim(info: ParameterInfo | None, model: ModelDefinition) -> int | None:
    """The padded vocabulary dim of an array, if it has one."""
    padded = padded_vocab(model.config) != model.config.vocab_size
    return info.axes.index("vocab") if padded and info and "vocab" in info.axes else None


def _unpadded(
    leaf: Any, info: ParameterInfo | None, model: ModelDefinition
) -> jax.ShapeDtypeStruct:
    dim = _vocab_dim(info, model)
    if dim is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    shape = list(leaf.shape)
    shape[dim] = model.config.vocab_size
    spec = list(leaf.sharding.spec) + [None] * (len(shape) - len(leaf.sharding.spec))
    # The unpadded vocabulary need not divide over a mesh axis, so it is not sharded.
    spec[dim] = None
    place = NamedSharding(leaf.sharding.mesh, P(*spec))
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=place)
