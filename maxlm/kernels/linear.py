"""A linear map whose gradients are written as the matmuls that hardware likes.

JAX derives the weight gradient of `x @ w` as `(dyᵀ x)ᵀ`; on a CPU, XLA then materialises transposed
copies of the activations. Here it is `xᵀ dy` in the kernel's own layout.
"""

from __future__ import annotations

from functools import partial

import jax


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, kernel: jax.Array, contracted: int) -> jax.Array:
    """Contract the last `contracted` dims of `x` with the first of `kernel`.

    Args:
        x: `[…, in…]`.
        kernel: `[in…, out…]` in `x`'s dtype.
        contracted: how many `in` dims there are.

    Returns:
        `[…, out…]`.
    """
    dims = (tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted)))
    return jax.lax.dot_general(x, kernel, (dims, ((), ())))


def _forward(
    x: jax.Array, kernel: jax.Array, contracted: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, kernel, contracted), (x, kernel)


def _backward(
    contracted: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    outputs = kernel.ndim - contracted
    over_out = (tuple(range(dy.ndim - outputs, dy.ndim)), tuple(range(contracted, kernel.ndim)))
    dx = jax.lax.dot_general(dy, kernel, (over_out, ((), ())))
    rows = tuple(range(x.ndim - contracted))
    dkernel = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    return dx, dkernel


linear.defvjp(_forward, _backward)
