"""RMS and layer norm, computed in float32 (Zhang & Sennrich 2019; Ba et al. 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.schema import ModelConfig, NormKind
from maxlm.model.parameter import Kind, declare, ones, zeros


class Norm(nnx.Module):
    """Normalises the last dim; scale always, bias where the config says so."""

    def __init__(
        self,
        config: ModelConfig,
        size: int,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        *,
        epsilon: float | None = None,
    ):
        self.kind = config.norm
        self.epsilon = config.norm_epsilon if epsilon is None else epsilon
        self.scale = declare(
            rngs, (size,), axes=("vector",), kind=Kind.VECTOR, init=ones, dtype=dtype
        )
        has_bias = config.norm is NormKind.LAYER and config.norm_bias
        self.bias = (
            declare(rngs, (size,), axes=("vector",), kind=Kind.VECTOR, init=zeros, dtype=dtype)
            if has_bias
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `x [..., size]`; the result has `x`'s dtype."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.kind is NormKind.LAYER:
            wide = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(wide).mean(-1, keepdims=True)
        normal = wide * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]
        if self.bias is not None:
            normal = normal + self.bias[...]
        return normal.astype(x.dtype)
