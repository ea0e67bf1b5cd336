"""Choosing the next token: temperature, top-k and top-p."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from maxlm.errors import ConfigError

SMALLEST = 1e-6  # below this float32 knows no share of a probability, and temperatures overflow


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; logits are divided by it otherwise.
        top_k: only the k most likely tokens; None: all.
        top_p: only the fewest tokens whose probabilities sum to p (Holtzman et al.,
            arXiv:1904.09751); 1: all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what chooses nothing. Raises ConfigError."""
        if self.temperature != 0 and not SMALLEST <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}: use 0 for the likeliest token, or at least "
                f"{SMALLEST:g} to draw (1 draws as the model predicts)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}: keep at least 1 token, or leave it out")
        if not SMALLEST <= self.top_p <= 1:
            raise ConfigError(
                f"top_p is {self.top_p}: use a share from {SMALLEST:g} to 1 (1 keeps all)"
            )


def sample(key: jax.Array, logits: jax.Array, options: SamplingOptions) -> jax.Array:
    """Draw a token per row.

    Args:
        key: random key.
        logits: `[B, V]` float32.
        options: how.

    Returns:
        `[B]` int32.
    """
    if options.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    # From 0 downwards: however small the temperature is, the likeliest token's logit stays finite.
    logits = (logits - logits.max(-1, keepdims=True)) / options.temperature
    lowest = jnp.finfo(logits.dtype).min
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, options.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, lowest, logits)
    if options.top_p < 1.0:
        ordered = jnp.sort(logits, -1, descending=True)
        probabilities = jax.nn.softmax(ordered, -1)
        # A token is kept while the tokens before it have not reached p: always at least one.
        before = jnp.cumsum(probabilities, -1) - probabilities
        count = jnp.sum(before < options.top_p, -1, keepdims=True)
        threshold = jnp.take_along_axis(ordered, count - 1, -1)
        logits = jnp.where(logits < threshold, lowest, logits)
    return jax.random.categorical(key, logits, -1).astype(jnp.int32)
