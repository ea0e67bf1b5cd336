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

    def linear(x: jax.Array, each: ExpertLinear) -> jax.Array:
        y = matmul(x, each.kernel, sizes)
        if each.scale is not None:
            y = y * of_rows(each.scale)
        if each.bias is not None:
            y = y + of_rows(each.bias)
        return y.astype(x.dtype)

    rows, down = rows_for(1 if weights.gate is None else 2), weights.down
    hidden = _hidden(rows, weights, hidden_of, linear)
    out = linear((hidden * scores).astype(hidden.dtype), down._replace(bias=None))
    return out if down.bias is None else (out + of_rows(down.bias) * scores).astype(out.dtype)


def equal_mlp(rows: jax.Array, weights: ExpertWeights, *, hidden_of: Hidden) -> jax.Array:
    """Each expert's MLP on equally many rows, `[E, R, D]` → `[E, R, D]`."""

    def linear(x: jax.Array, each: ExpertLinear) -> jax.Array:
        y = jnp.einsum("erk,ekn->ern", x, each.kernel.astype(x.dtype))
        if each.scale is not None:
            y = y * each.scale[:, None]
        if each.bias is not None:
            y = y + each.bias[:, None]
        return y.astype(x.dtype)

    # Named for rematerialisation: rows may have come from other devices, and the output is needed for the
    # gradient of the scores.
    rows = checkpoint_name(rows, "expert_rows")
    out = linear(_hidden((rows, rows), weights, hidden_of, linear), weights.down)
    return checkpoint_name(out, "mlp_projected")


def _hidden(
    rows: tuple[jax.Array, ...], weights: ExpertWeights, hidden_of: Hidden, linear: Linear
) -> jax.Array:
    """The hidden width, from a copy of the rows for each map that reads them."""
    up = checkpoint_name(linear(rows[0], weights.up), "mlp_up")
    gate = None
    if weights.gate is not None:
        gate = checkpoint_name(linear(rows[-1], weights.gate), "mlp_gate")
    return hidden_of(gate, up)
