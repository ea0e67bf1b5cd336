"""Between the train state and what a checkpoint holds: named arrays that no layout shows in.

Vocabulary padding is removed on the way out and put back (as zeros, which it is) on the way in.
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
from maxlm.train.state import TrainState

Arrays = dict[str, Any]


def to_canonical(state: TrainState, model: ModelDefinition) -> Arrays:
    """Arrays of a state by canonical name (`params.…`, `variables.…`, `optimizer.…`, …)."""
    named = _flatten(state)
    cut = {
        n: _unpadded(a, n, model) for n, a in named.items() if _vocab_dim(n, a, model) is not None
    }
    if cut:
        shapes = tuple((name, leaf.shape, leaf.sharding) for name, leaf in cut.items())
        named.update(_slicer(shapes)({name: named[name] for name in cut}))
    return named


@functools.lru_cache(maxsize=8)
def _slicer(cut: tuple[tuple[str, tuple[int, ...], Any], ...]) -> Callable[[Arrays], Arrays]:
    """A program that cuts arrays to shapes, kept so that only the first save compiles it."""
    shapes = {name: shape for name, shape, _ in cut}

    def slice_all(arrays: Arrays) -> Arrays:
        return {n: jax.lax.slice(a, (0,) * a.ndim, shapes[n]) for n, a in arrays.items()}

    return jax.jit(slice_all, out_shardings={name: sharding for name, _, sharding in cut})


def canonical_targets(
    layout: TrainState, model: ModelDefinition
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a checkpoint of this state holds: shape, dtype and where to restore it to."""
    return {name: _unpadded(leaf, name, model) for name, leaf in _flatten(layout).items()}


def from_canonical(arrays: Arrays, layout: TrainState, model: ModelDefinition) -> TrainState:
    """The state of restored arrays, padded again and laid out as `layout` says."""
    targets = _flatten(layout)
    padded = {
        n: a for n, a in arrays.items() if isinstance(a, jax.Array) and a.shape != targets[n].shape
    }
    if padded:

        def pad_all(narrow: Arrays) -> Arrays:
            return {
                n: jnp.pad(a, [(0, t - s) for s, t in zip(a.shape, targets[n].shape, strict=True)])
                for n, a in narrow.items()
            }

        places = {name: targets[name].sharding for name in padded}
        arrays = arrays | jax.jit(pad_all, out_shardings=places)(padded)
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


def _vocab_dim(name: str, leaf: Any, model: ModelDefinition) -> int | None:
    """The padded vocabulary dim of an array, if it has one."""
    info = next((i for n, i in model.parameters.items() if name.endswith("." + n)), None)
    padded = padded_vocab(model.config)
    if info is None or "vocab" not in info.axes or leaf.shape != info.shape:
        return None
    return None if padded == model.config.vocab_size else info.axes.index("vocab")


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
