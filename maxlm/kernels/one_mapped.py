"""Kernels under the `vmap` over the stages of a pipeline, of which every device holds one.

Inside `jax.shard_map` the mapped dim then has one element, but JAX maps all the same: a loop whose
length depends on data selects between whole carries at every turn, both branches of a `cond` are
computed, and a kernel without a rule for it (cuDNN's) fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def one_mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, which a `vmap` over one element calls on that element.

    It has no derivative: it is for the forward and the backward function of a `jax.custom_vjp`. What
    is named for rematerialisation has to be named outside.
    """
    mappable = custom_vmap(function)

    @mappable.def_vmap
    def mapped(size: int, is_mapped: Any, *arrays: Any) -> tuple[Any, Any]:
        if size == 1:
            out = mappable(
                *jax.tree.map(lambda x, own: x[0] if own else x, arrays, tuple(is_mapped))
            )
            out = jax.tree.map(partial(jnp.expand_dims, axis=0), out)
        else:
            dims = jax.tree.map(lambda own: 0 if own else None, tuple(is_mapped))
            out = jax.vmap(function, in_axes=dims)(*arrays)
        return out, jax.tree.map(lambda _: True, out)

    return mappable
