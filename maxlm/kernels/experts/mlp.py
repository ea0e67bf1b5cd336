"""The MLP of every expert at once, for rows sorted by expert or for equally many rows of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels.activations import Hidden
from maxlm.kernels.grouped_matmul.choose import GroupedMatmul


class ExpertLinear(NamedTuple):
    """A linear map of every expert; None: not there."""

    kernel: jax.Array  # [E, in, out], in the compute dtype, or in 8 bits where there is a scale
    bias: jax.Array | None = None  # [E, out]
    scale: jax.Array | None = None  # [E, out] float32


class ExpertWeights(NamedTuple):
    """The maps of every expert's MLP, D → F and back."""

    gate: ExpertLinear | None
    up: ExpertLinear
    down: ExpertLinear


Linear = Callable[[jax.Array, ExpertLinear], jax.Array]  # rows -> rows


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

    def of_rows(vectors: jax.Array) -> jax.Array:
        # A row of zeros for the rows past the last expert's.
        return jnp.pad(vectors, ((0, 1), (0, 0)))[expert]

    def linear(x: jax.Array, each: ExpertLinear) -> jax.Array:
        y = matmul(x, each.kernel, sizes)
        if each.scale is not None:
            y = y * of_rows(each.scale)
        if each.bias is not None:
            y = y + of_rows(each.bias)
        return y.astype(x.dtype)

    return _mlp(rows, weights, hidden_of, linear)


def equal_mlp(rows: jax.Array, weights: ExpertWeights, *, hidden_of: Hidden) -> jax.Array:
    """Each expert's MLP on equally many rows, `[E, R, D]` → `[E, R, D]`."""

    def linear(x: jax.Array, each: ExpertLinear) -> jax.Array:
        y = jnp.einsum("erk,ekn->ern", x, each.kernel.astype(x.dtype))
        if each.scale is not None:
            y = y * each.scale[:, None]
        if each.bias is not None:
            y = y + each.bias[:, None]
        return y.astype(x.dtype)

    return _mlp(rows, weights, hidden_of, linear)


def _mlp(rows: jax.Array, weights: ExpertWeights, hidden_of: Hidden, linear: Linear) -> jax.Array:
    # Named for rematerialisation, these too: rows may have come from other devices.
    rows = checkpoint_name(rows, "expert_rows")
    up = checkpoint_name(linear(rows, weights.up), "mlp_up")
    gate = None
    if weights.gate is not None:
        gate = checkpoint_name(linear(rows, weights.gate), "mlp_gate")
    hidden = hidden_of(gate, up)
    # Needed for the gradient of the scores, by which it is multiplied.
    return checkpoint_name(linear(hidden, weights.down), "mlp_projected")
