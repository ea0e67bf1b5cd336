"""The one batch that travels from the loader to the train step."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Arrays of one batch, all `[B, T]`; numpy on the host, `jax.Array` on the devices.

    A NamedTuple, because that is a pytree without importing jax.
    """

    tokens: Any  # [B, T] int32, what the model reads
    targets: Any  # [B, T] int32, the token that follows each of `tokens`
    loss_weights: Any  # [B, T] float32, 0 where a target is padding or begins another document
    segment_ids: Any  # [B, T] int32, 1, 2, … per document in a row; 0 is padding
    positions: Any  # [B, T] int32, restart at 0 with every document
