"""Rotary position embeddings (Su et al., arXiv:2104.09864), in the half-split layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotations.

    Args:
        positions: `[B, T]` integer positions.
        head_dim: width of a head, even.
        theta: base of the frequencies.

    Returns:
        Two float32 arrays `[B, T, 1, C/2]`.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[..., None].astype(jnp.float32) * theta**-exponents  # [B, T, C/2]
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate `x [B, T, H, C]`, the first half of a head against the second; keeps `x`'s dtype."""
    first, second = jnp.split(x, 2, axis=-1)  # [B, T, H, C/2]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
