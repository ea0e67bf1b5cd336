"""Rotation of heads by their positions (RoPE), as each platform runs it fast.

A TPU keeps 128 numbers of a head side by side: halves of a head fill half of that, and taking them apart and
together again moves everything several times. There a product with a matrix of 0 and ±1 swaps the halves
beside the multiplications: forward and backward take half the cycles (docs/layouts.md). It is exact: every sum has
one term.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the first R dims of `x [B, T, H, C]`, their first half against the second.

    Positions have no gradient: those by `cos` and `sin` are zero.

    Args:
        x: heads.
        cos: float32 `[B, T, 1, R/2]`, of the angle of every pair of dims.
        sin: the same.

    Returns:
        `[B, T, H, C]` in `x`'s dtype.
    """
    return jax.lax.platform_dependent(x, cos, sin, tpu=_by_matmul, default=_by_halves)


def _forward(
    x: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rotate(x, cos, sin), (cos, sin)


def _backward(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    cos, sin = residuals
    # The transpose of a rotation turns back; a factor in both (YaRN's) stays.
    return rotate(dy, cos, -sin), jnp.zeros_like(cos), jnp.zeros_like(sin)


rotate.defvjp(_forward, _backward)


def _by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]  # [B, T, H, R/2]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :].astype(parts[0].dtype))
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def _by_matmul(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    width, half = x.shape[-1], cos.shape[-1]
    swap = np.zeros((width, width), np.float32)
    index = np.arange(half)
    swap[half + index, index] = -1  # -second, where the first half was …
    swap[index, half + index] = 1  # … and the first where the second was
    rest = ((0, 0),) * (cos.ndim - 1) + ((0, width - 2 * half),)
    cos = jnp.pad(jnp.concatenate([cos, cos], -1), rest, constant_values=1)  # [B, T, 1, C]
    sin = jnp.pad(jnp.concatenate([sin, sin], -1), rest)
    swapped = jnp.matmul(
        x,
        jnp.asarray(swap, x.dtype),
        precision=None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST,
        preferred_element_type=cos.dtype,
    )
    return (x * cos + swapped * sin).astype(x.dtype)
