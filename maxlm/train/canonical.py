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
    named = _flatten(state)
    changed = {n: a for n, a in named.items() if _differs(n, a, model)}
    if changed:
        targets = {name: _unpadded(leaf, name, model) for name, leaf in changed.items()}
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
    return {name: _unpadded(leaf, name, model) for name, leaf in _flatten(layout).items()}


def from_canonical(arrays: Arrays, layout: TrainState, model: ModelDefinition) -> TrainState:
    """The state of restored arrays, padded again and laid out as `layout` says."""
    targets = _flatten(layout)
    changed = {
        n: a
        for n, a in arrays.items()
        if isinstance(a, jax.Array) and _differs(n, targets[n], model)
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


def _parameter(name: str, leaf: Any, model: ModelDefinition) -> ParameterInfo | None:
    """The parameter or variable that an array of the state is, or goes with: of name and shape."""
    declared = model.parameters | model.variables
    info = next((i for n, i in declared.items() if name.endswith("." + n)), None)
    return info if info is not None and leaf.shape == info.shape else None


def _differs(name: str, leaf: Any, model: ModelDefinition) -> bool:
    """Whether an array of the state is another than a checkpoint's."""
    info, stages = _parameter(name, leaf, model), model.execution.stages
    reordered = stages is not None and stages.rounds > 1 and info and "layers" in info.axes
    return bool(reordered) or _vocab_dim(name, leaf, model) is not None


def _vocab_dim(name: str, leaf: Any, model: ModelDefinition) -> int | None:
    """The padded vocabulary dim of an array, if it has one."""
    info = _parameter(name, leaf, model)
    if info is None or "vocab" not in info.axes:
        return None
    return (
        None if padded_vocab(model.config) == model.config.vocab_size else info.axes.index("vocab")
    )


def _unpadded(leaf: Any, name: str, model: ModelDefinition) -> jax.ShapeDtypeStruct:
    dim = _vocab_dim(name, leaf, model)
    if dim is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    shape = list(leaf.shape)
    shape[dim] = model.config.vocab_size
    spec = list(leaf.sharding.spec) + [None] * (len(shape) - len(leaf.sharding.spec))
    # The unpadded vocabulary need not divide over a mesh axis, so it is not sharded.
    spec[dim] = None
    place = NamedSharding(leaf.sharding.mesh, P(*spec))
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=place)
