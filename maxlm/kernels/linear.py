"""A linear map, with gradients written as each platform runs them fast.

**On a CPU** over flattened tokens: JAX derives the weight gradient of a matmul over `[batch, length]` as
one that contracts two dims; XLA then materialises transposed copies of the activations, fused with
whatever made them (7 ms a layer for 768 tokens × 512 behind a GELU). Of the two ways to write a weight
gradient, the one that transposes the narrower operand is up to 1.5 times faster there, and a matmul
after a transpose of its own 4% of a step faster than one that contracts rows. Where the tokens of a
row lie over several devices, flattening would move them, and dims stay as they are.

**On a TPU** dims always stay: of flattened heads XLA makes transposed copies before and after attention. And
the gradient by the input is pinned to the layout in which activations are kept: left alone, the compiler may
compute it transposed, with copies of what the forward pass kept. docs/layouts.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from maxlm.kernels.row_major import row_major
from maxlm.parallel.axes import length_shards


def linear(x: jax.Array, kernel: jax.Array, contracted: int) -> jax.Array:
    """Contract the last `contracted` dims of `x` with the first of `kernel`.

    Args:
        x: `[…, in…]`.
        kernel: `[in…, out…]` in `x`'s dtype.
        contracted: how many `in` dims there are.

    Returns:
        `[…, out…]`.
    """
    has_length = x.ndim - contracted > 1
    return _linear(x, kernel, contracted, not has_length or length_shards(x.shape[1]) == 1)


def linear_output_major(x: jax.Array, kernel: jax.Array, contracted: int) -> jax.Array:
    """The same with a kernel `[out…, in…]`, for inference on a CPU.

    Times up to 16 rows, XLA reads such a matrix from memory at 11 to 22 GB/s, and one `[in…, out…]` at 4
    to 14 (2 cores, float32). Without the barrier it turns the product around, and is as slow again.
    """
    rows, outputs = x.shape[: x.ndim - contracted], kernel.shape[: kernel.ndim - contracted]
    width = math.prod(x.shape[x.ndim - contracted :])
    flat = jax.lax.optimization_barrier(kernel.reshape(-1, width) @ x.reshape(-1, width).T)
    return flat.T.reshape(*rows, *outputs)


Residuals = tuple[jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _linear(x: jax.Array, kernel: jax.Array, contracted: int, flatten: bool) -> jax.Array:
    """`flatten`: whether the tokens of `x` may become one dim."""
    return jnp.tensordot(x, kernel, contracted)


def _forward(
    x: jax.Array, kernel: jax.Array, contracted: int, flatten: bool
) -> tuple[jax.Array, Residuals]:
    return _linear(x, kernel, contracted, flatten), (x, kernel)


def _backward(contracted: int, flatten: bool, residuals: Residuals, dy: jax.Array) -> Residuals:
    operands = (*residuals, dy)
    by_dims = partial(_by_dims, contracted)
    if not flatten:
        return by_dims(*operands)
    return jax.lax.platform_dependent(
        *operands,
        tpu=by_dims,
        cpu=partial(_flat, contracted, _weight_grad_on_cpu),
        default=partial(_flat, contracted, _weight_grad),
    )


_linear.defvjp(_forward, _backward)


def _by_dims(contracted: int, x: jax.Array, kernel: jax.Array, dy: jax.Array) -> Residuals:
    """Gradients of `x` and `kernel`, as JAX derives them."""
    rows = tuple(range(x.ndim - contracted))
    outputs, of_kernel = range(len(rows), dy.ndim), range(contracted, kernel.ndim)
    dx = jax.lax.dot_general(dy, kernel, ((tuple(outputs), tuple(of_kernel)), ((), ())))
    if contracted == 1:  # that of heads follows attention's kernel, which has a layout of its own
        dx = row_major(dx)
    return dx, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


def _flat(
    contracted: int,
    weight_grad: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    dy: jax.Array,
) -> Residuals:
    """The same, by matrices."""
    width = math.prod(kernel.shape[:contracted])
    flat_x, matrix = x.reshape(-1, width), kernel.reshape(width, -1)
    flat_dy = dy.reshape(-1, matrix.shape[1])
    dx = flat_dy @ matrix.T
    return dx.reshape(x.shape), weight_grad(flat_x, flat_dy).reshape(kernel.shape)


def _weight_grad(x: jax.Array, dy: jax.Array) -> jax.Array:
    return x.T @ dy


def _weight_grad_on_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
    # The barriers keep XLA from folding the transposes back into the slower form.
    if x.shape[1] <= dy.shape[1]:
        return jax.lax.optimization_barrier(x.T) @ dy
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(dy.T) @ x).T
