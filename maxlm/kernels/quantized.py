"""Linear maps of 8-bit weights: one scale per output, symmetric, rounded to nearest.

Weight-only keeps activations as they are and halves or quarters what is read from memory. With 8-bit
matmuls activations are rounded too, each token by its own largest value, and the product is of 8-bit
numbers, summed in int32 or float32 (LLM.int8's vector-wise scheme, arXiv:2208.07339, section 2.1).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from maxlm.config.choices import Quantization

LARGEST = {jnp.dtype(jnp.int8): 127.0, jnp.dtype(jnp.float8_e4m3fn): 448.0}


def stored_dtype(kind: Quantization) -> jnp.dtype:
    """The type of the weights."""
    narrow = kind in (Quantization.INT8, Quantization.INT8_MATMUL)
    return jnp.dtype(jnp.int8 if narrow else jnp.float8_e4m3fn)


def multiplies_narrow(kind: Quantization) -> bool:
    """Whether activations are rounded too."""
    return kind in (Quantization.INT8_MATMUL, Quantization.FP8_MATMUL)


def quantize(
    array: jax.Array, dims: tuple[int, ...], dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Round to a narrow type with scales over `dims`.

    Returns:
        Values of `array`'s shape in `dtype`, and float32 scales without `dims`, such that
        values × scale is `array` to half a step (int8) or to one part in 16 (fp8).
    """
    wide = array.astype(jnp.float32)
    largest = jnp.abs(wide).max(dims, keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST[dtype], 1.0)
    values = wide / scale
    if dtype == jnp.int8:
        values = jnp.round(values)
    return values.astype(dtype), scale.squeeze(dims)


def quantized_linear(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    contracted: int,
    kind: Quantization,
    *,
    output_major: bool,
) -> jax.Array:
    """`linear` with a quantised kernel.

    Args:
        x: `[…, in…]`.
        kernel: `[in…, out…]`, or `[out…, in…]` where `output_major`, 8 bits.
        scale: `[out…]` float32.
        contracted: how many `in` dims there are.
        kind: how to multiply.
        output_major: which way round the kernel is.

    Returns:
        `[…, out…]` in x's dtype.
    """
    rows = x.shape[: x.ndim - contracted]
    width = math.prod(x.shape[x.ndim - contracted :])
    flat = x.reshape(-1, width)
    matrix = kernel.reshape(-1, width) if output_major else kernel.reshape(width, -1)
    dims = (((1,), (1 if output_major else 0,)), ((), ()))
    if multiplies_narrow(kind):
        narrow, token_scale = quantize(flat, (1,), kernel.dtype)
        whole = kernel.dtype == jnp.int8
        total = jax.lax.dot_general(
            narrow, matrix, dims, preferred_element_type=jnp.int32 if whole else jnp.float32
        )
        product = total.astype(jnp.float32) * token_scale[:, None]
    else:
        product = jax.lax.dot_general(
            flat, matrix.astype(x.dtype), dims, preferred_element_type=jnp.float32
        )
    product = product * scale.reshape(-1)
    return product.astype(x.dtype).reshape(*rows, *scale.shape)
