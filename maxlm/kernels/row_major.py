"""The layout of activations on a TPU: the last dim changes fastest.

The compiler chooses a layout for every array. What a layer hands to the next it may keep with the tokens
fastest, since one gradient wants it so, and copy it for all who want it otherwise. docs/layouts.md has the
figures.
"""

from __future__ import annotations

import jax
from jax.experimental.layout import Layout, with_layout_constraint

# By the compiler of jax 0.10 (libtpu 0.0.42) every device gathers the whole array to pin it; by that of
# 0.12 (0.0.52) it stays divided.
STAYS_DIVIDED = jax.__version_info__ >= (0, 12)


def row_major(array: jax.Array) -> jax.Array:
    """The same array, and the same gradient, row-major on a TPU; elsewhere nothing happens."""
    if not STAYS_DIVIDED:
        return array
    return jax.lax.platform_dependent(array, tpu=_pinned, default=_as_it_is)


def _pinned(array: jax.Array) -> jax.Array:
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


def _as_it_is(array: jax.Array) -> jax.Array:
    return array
