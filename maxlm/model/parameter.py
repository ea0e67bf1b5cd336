"""How a parameter is declared: its shape, logical axes, kind and initialiser, in one place.

Modules call `declare`; everything else (sharding, optimizer, weight decay, counting, checkpoints)
reads `ParameterInfo` and never a name or an `ndim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.schema import MatrixInit, ModelConfig

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


class Kind(StrEnum):
    """What a parameter is to the optimizer."""

    EMBEDDING = "embedding"  # rows looked up by token or position
    MATRIX = "matrix"  # maps input axes to output axes
    HEAD = "head"  # maps the residual stream to logits
    VECTOR = "vector"  # norm scales and biases


@dataclass(frozen=True)
class ParameterInfo:
    """What a parameter declares of itself.

    Attributes:
        shape: its dims, `layers` first where blocks are stacked.
        axes: one logical axis per dim (`embed, heads, kv_heads, head_dim, mlp, vocab, layers, …`).
        kind: what it is to the optimizer.
        inputs: the axes that a matrix contracts (its fan-in); empty for other kinds.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    kind: Kind
    inputs: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def reduction_dims(self) -> tuple[int, ...]:
        """Dims that a matrix contracts."""
        return tuple(i for i, axis in enumerate(self.axes) if axis in self.inputs)

    @property
    def output_dims(self) -> tuple[int, ...]:
        """Dims that a matrix produces (`layers` and `experts` are neither: each has its own matrix)."""
        stacked = ("layers", "experts")
        return tuple(
            i for i, a in enumerate(self.axes) if a not in self.inputs and a not in stacked
        )


def declare(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    *,
    axes: tuple[str, ...],
    kind: Kind,
    init: Initializer,
    inputs: tuple[str, ...] = (),
    dtype: Any = jnp.float32,
) -> nnx.Param:
    """Make a parameter that knows its logical axes, kind and fan-in."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes, kind=kind, inputs=inputs)


class Moved(nnx.Variable):
    """An array that the train step moves by a rule of its own; no gradient and no optimizer does."""


def declare_moved(
    shape: tuple[int, ...], *, axes: tuple[str, ...], dtype: Any = jnp.float32
) -> Moved:
    """Make a variable that starts at zero and knows its logical axes."""
    assert len(shape) == len(axes), (shape, axes)
    return Moved(jnp.zeros(shape, dtype), axes=axes, kind=Kind.VECTOR, inputs=())


def normal(std: float) -> Initializer:
    """Normal initialiser with a standard deviation."""
    return jax.nn.initializers.normal(std) if std > 0 else jax.nn.initializers.zeros


def matrix_init(config: ModelConfig) -> Initializer:
    """Initialiser of matrices: a fixed deviation, or 1/√fan-in (LeCun)."""
    if config.matrix_init is MatrixInit.FIXED:
        return normal(config.init_std)
    return normal(config.embed_dim**-0.5)


zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def padded_rows(init: Initializer, rows: int) -> Initializer:
    """Wrap `init` so that rows from `rows` on (vocabulary padding) are zero.

    They stay zero: their logits are masked, so no gradient reaches them.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        values = init(key, shape, dtype)
        return jnp.where(jnp.arange(shape[0])[:, None] < rows, values, 0).astype(dtype)

    return initialize
