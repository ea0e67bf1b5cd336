"""The MLP of every expert at once, for rows sorted by expert or for equally many rows of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.activations import Hidden
from maxlm.kernels.grouped_matmul.choose import GroupedMatmul


class ExpertWeights(NamedTuple):
    """Matrices in the compute dtype and biases in their own; None: not there."""

    gate: jax.Array | None  # [E, D, F]
    up: jax.Array  # [E, D, F]
    down: jax.Array  # [E, F, D]
    gate_bias: jax.Array | None  # [E, F]
    up_bias: jax.Array | None  # [E, F]
    down_bias: jax.Array | None  # [E, D]


# (rows, matrix, bias) -> rows
Linear = Callable[[jax.Array, jax.Array, "jax.Array | None"], jax.Array]


def grouped_mlp(
    rows: jax.Array,
    sizes: jax.Array,
    weights: ExpertWeights,
    *,
    hidden_of: Hidden,
    matmul: GroupedMatmul,
) -> jax.Array:
    """Each expert's MLP on its own rows.

    Args:
        rows: `[R, D]`, sorted by expert.
        sizes: `[E]` int32, rows of each expert.
        weights: of the experts.
        hidden_of: the hidden width from the gate, None where there is none, and the up projection.
        matmul: a grouped matmul.

    Returns:
        `[R, D]`; zeros past the last expert's rows.
    """
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows.shape[0]), side="right")

    def linear(x: jax.Array, matrix: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = matmul(x, matrix, sizes)
        if bias is None:
            return y
        # A row of zeros for the rows past the last expert's.
        return (y + jnp.pad(bias, ((0, 1), (0, 0)))[expert]).astype(x.dtype)

    return _mlp(rows, weights, hidden_of, linear)


def equal_mlp(rows: jax.Array, weights: ExpertWeights, *, hidden_of: Hidden) -> jax.Array:
    """Each expert's MLP on equally many rows, `[E, R, D]` → `[E, R, D]`."""

    def linear(x: jax.Array, matrix: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = jnp.einsum("erk,ekn->ern", x, matrix)
        return y if bias is None else (y + bias[:, None]).astype(x.dtype)

    return _mlp(rows, weights, hidden_of, linear)


def _mlp(rows: jax.Array, weights: ExpertWeights, hidden_of: Hidden, linear: Linear) -> jax.Array:
    # Named for rematerialisation, these too: rows may have come from other devices.
    rows = checkpoint_name(rows, "expert_rows")
    up = checkpoint_name(linear(rows, weights.up, weights.up_bias), "mlp_up")
    gate = None
    if weights.gate is not None:
        gate = checkpoint_name(linear(rows, weights.gate, weights.gate_bias), "mlp_gate")
    hidden = hidden_of(gate, up)
    # Needed for the gradient of the scores, by which it is multiplied.
    return checkpoint_name(linear(hidden, weights.down, weights.down_bias), "mlp_projected")
