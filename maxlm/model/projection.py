"""A linear map of a block, as it is trained, or turned around and rounded for generation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.choices import Quantization
from maxlm.kernels.linear import linear, linear_output_major
from maxlm.kernels.quantized import quantize, quantized_linear, stored_dtype
from maxlm.model.parameter import Initializer, Kind, declare, zeros


class Projection(nnx.Module):
    """A linear map between named axes, with an optional bias."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, ...],
        *,
        axes: tuple[str, ...],
        inputs: int,
        init: Initializer,
        bias: bool,
        dtype: jnp.dtype,
    ):
        self.contracted = inputs
        self.output_major = False
        self.quantization: Quantization | None = None
        self.kernel = declare(
            rngs, shape, axes=axes, kind=Kind.MATRIX, init=init, inputs=axes[:inputs], dtype=dtype
        )
        out = shape[inputs:]
        names = ("vector",) if len(out) == 1 else axes[inputs:]
        self.bias = (
            declare(rngs, out, axes=names, kind=Kind.VECTOR, init=zeros, dtype=dtype)
            if bias
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Contract the last `inputs` dims of `x` with those of the kernel, in x's dtype."""
        y = self._product(x)
        if self.bias is not None:
            # Added in the bias's dtype: its gradient is a sum over all tokens.
            y = (y + self.bias[...]).astype(x.dtype)
        return y

    def _product(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        if self.quantization is not None:
            scale, major = self.scale[...], self.output_major
            return quantized_linear(
                x, kernel, scale, self.contracted, self.quantization, output_major=major
            )
        apply = linear_output_major if self.output_major else linear
        return apply(x, kernel.astype(x.dtype), self.contracted)

    def turn(self) -> None:
        """Keep the kernel as `[out…, in…]`, stacked or not."""
        declared, kernel = self.kernel.get_metadata(), self.kernel[...]
        axes, stacked = declared["axes"], kernel.ndim - len(declared["axes"])
        moved = turned(kernel, stacked, self.contracted)
        turned_axes = axes[self.contracted :] + axes[: self.contracted]
        self.kernel = nnx.Param(moved, **{**declared, "axes": turned_axes})
        self.output_major = True

    def quantize(self, kind: Quantization) -> None:
        """Keep the kernel in 8 bits, and a scale for each output."""
        declared, kernel = self.kernel.get_metadata(), self.kernel[...]
        axes = declared["axes"]
        stacked = kernel.ndim - len(axes)
        first = stacked + (len(axes) - self.contracted if self.output_major else 0)
        values, scale = quantize(
            kernel, tuple(range(first, first + self.contracted)), stored_dtype(kind)
        )
        self.kernel = nnx.Param(values, **declared)
        outputs = tuple(axis for axis in axes if axis not in declared["inputs"])
        described = {**declared, "axes": outputs, "kind": Kind.VECTOR, "inputs": ()}
        self.scale = nnx.Param(scale, **described)
        self.quantization = kind


def turned(kernel: jax.Array, stacked: int, inputs: int) -> jax.Array:
    """A kernel `[stacked…, in…, out…]` as `[stacked…, out…, in…]`."""
    dims = list(range(kernel.ndim))
    first = stacked + inputs
    return kernel.transpose(dims[:stacked] + dims[first:] + dims[stacked:first])
