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


# (rows, map of each expert, weight of each row or None) -> rows
Linear = Callable[[jax.Array, ExpertLinear, jax.Array | None], jax.Array]


def grouped_mlp(
    rows_for: Callable[[int], tuple[jax.Array, ...]],
    scores: jax.Array,
    sizes: jax.Array,
    weights: ExpertWeights,
    *,
    hidden_of: Hidden,
    matmul: GroupedMatmul,
) -> jax.Array:
    """Each expert's MLP on its own rows, weighted.

    The weights multiply the hidden width, which is narrower, and whose product with its gradient is theirs: so no
    expert's output has to be kept for them.

    Args:
        rows_for: for a number of maps that read them, as many equal `[R, D]`, sorted by expert.
        scores: `[R, 1]`, the weight of each row, float32 or wider.
        sizes: `[E]` int32, rows of each expert.
        weights: of the experts.
        hidden_of: the hidden width from the gate, None where there is none, and the up projection.
        matmul: a grouped matmul.

    Returns:
        `[R, D]`; anything past the last expert's rows.
    """
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(scores.shape[0]), side="right")

    def of_rows(vectors: jax.Array) -> jax.Array:
        # A row of zeros for the rows past the last expert's.
        return jnp.pad(vectors, ((0, 1), (0, 0)))[expert]

    def linear(x: jax.Array, each: ExpertLinear, scores: jax.Array | None) -> jax.Array:
        if scores is not None:
            x = (x * scores).astype(x.dtype)
        y = matmul(x, each.kernel, sizes)
        if each.scale is not None:
            y = y * of_rows(each.scale)
        if each.bias is not None:
            bias = of_rows(each.bias)
            y = y + (bias if scores is None else bias * scores)
        return y.astype(x.dtype)

    return _mlp(rows_for(1 if weights.gate is None else 2), weights, hidden_of, linear, scores)


def equal_mlp(rows: jax.Array, weights: ExpertWeights, *, hidden_of: Hidden) -> jax.Array:
    """Each expert's MLP on equally many rows, `[E, R, D]` → `[E, R, D]`."""

    def linear(x: jax.Array, each: ExpertLinear, scores: jax.Array | None) -> jax.Array:
        y = jnp.einsum("erk,ekn->ern", x, each.kernel.astype(x.dtype))
        if each.scale is not None:
            y = y * each.scale[:, None]
        if each.bias is not None:
            y = y + each.bias[:, None]
        return y.astype(x.dtype)

    # Named for rematerialisation: rows may have come from other devices, and the output is needed for the
    # gradient of the scores.
    rows = checkpoint_name(rows, "expert_rows")
    return checkpoint_name(_mlp((rows, rows), weights, hidden_of, linear, None), "mlp_projected")


def _mlp(
    rows: tuple[jax.Array, ...],
    weights: ExpertWeights,
    hidden_of: Hidden,
    linear: Linear,
    scores: jax.Array | None,
) -> jax.Array:
    up = checkpoint_name(linear(rows[0], weights.up, None), "mlp_up")
    gate = None
    if weights.gate is not None:
        gate = checkpoint_name(linear(rows[1], weights.gate, None), "mlp_gate")
    return linear(hidden_of(gate, up), weights.down, scores)
