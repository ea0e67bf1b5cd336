"""A mixture of experts in place of a block's MLP: a router, experts, and experts that all share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.choices import Quantization
from maxlm.config.schema import ModelConfig
from maxlm.kernels.activations import hidden_of
from maxlm.kernels.experts.capacity import places_per_row, within_capacity
from maxlm.kernels.experts.dispatch import (
    WEIGHT_AXES,
    ExpertKernels,
    LinearAxes,
    apply_experts,
)
from maxlm.kernels.experts.mlp import ExpertLinear, ExpertWeights
from maxlm.kernels.quantized import quantize, stored_dtype
from maxlm.model.mlp import MLP
from maxlm.model.parameter import Initializer, Kind, declare, zeros
from maxlm.model.router import Load, Router


class ExpertProjection(nnx.Module):
    """A linear map of every expert, `[E, in, out]`, with an optional bias `[E, out]`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, int, int],
        *,
        axes: LinearAxes,
        bias: bool,
        init: Initializer,
        dtype: jnp.dtype,
    ):
        self.scale_axes = axes.scale
        self.quantized = False
        self.kernel = declare(
            rngs,
            shape,
            axes=axes.kernel,
            kind=Kind.MATRIX,
            init=init,
            inputs=axes.kernel[1:2],
            dtype=dtype,
        )
        width = (shape[0], shape[2])
        self.bias = (
            declare(rngs, width, axes=axes.bias, kind=Kind.VECTOR, init=zeros, dtype=dtype)
            if bias
            else None
        )

    def of_dtype(self, dtype: jnp.dtype) -> ExpertLinear:
        """The map with its matrix in a dtype, or in the 8 bits that it is kept in."""
        kernel = self.kernel[...]
        bias = None if self.bias is None else self.bias[...]
        if self.quantized:
            return ExpertLinear(kernel, bias, self.scale[...])
        return ExpertLinear(kernel.astype(dtype), bias)

    def quantize(self, kind: Quantization) -> None:
        """Keep the kernel in 8 bits, and a scale for each output of each expert."""
        declared, kernel = self.kernel.get_metadata(), self.kernel[...]
        values, scale = quantize(kernel, (kernel.ndim - 2,), stored_dtype(kind))
        self.kernel = nnx.Param(values, **declared)
        described = {**declared, "axes": self.scale_axes, "kind": Kind.VECTOR, "inputs": ()}
        self.scale = nnx.Param(scale, **described)
        self.quantized = True


class Experts(nnx.Module):
    """`Σ weight × expert(x)` over the experts that a token visits, plus the shared ones."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        init: Initializer,
        output_init: Initializer,
        dtype: jnp.dtype,
        kernels: ExpertKernels,
    ):
        embed, experts, hidden = config.embed_dim, config.num_experts, config.expert_mlp_dim
        assert experts and hidden
        self.config = config
        self.kernels = kernels

        def project(name: str, width: tuple[int, int], init: Initializer) -> ExpertProjection:
            return ExpertProjection(
                rngs,
                (experts, *width),
                axes=WEIGHT_AXES[name],
                bias=config.mlp_bias,
                init=init,
                dtype=dtype,
            )

        self.router = Router(config, rngs, init=init, dtype=dtype)
        gated = config.mlp.is_gated
        self.gate = project("gate", (embed, hidden), init) if gated else None
        self.up = project("up", (embed, hidden), init)
        self.down = project("down", (hidden, embed), output_init)
        shared = config.shared_experts * hidden
        self.shared = (
            MLP(config, rngs, hidden=shared, init=init, output_init=output_init, dtype=dtype)
            if shared
            else None
        )

    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, turns: jax.Array | None
    ) -> tuple[jax.Array, Load]:
        """Map `x [B, T, D]` to `[B, T, D]`, and say what the router saw.

        Args:
            x: tokens.
            segment_ids: `[B, T]`, 0 for padding, which visits no expert.
            turns: `[B, T]` order of the tokens in a row, by which they find places where experts
                have a capacity; None: all do.
        """
        chosen, scores, load = self.router(x, segment_ids > 0)
        places = None
        c = self.config
        if c.capacity_factor is not None and turns is not None:
            assert c.num_experts
            length, visits = chosen.shape[1:]
            places = places_per_row(c.capacity_factor, length, visits, c.num_experts)
            kept = within_capacity(chosen, turns, places=places, num_experts=c.num_experts)
            chosen = jnp.where(kept, chosen, c.num_experts)
            load = load._replace(dropped=load.visits.sum() - kept.sum(dtype=load.visits.dtype))
        out = apply_experts(
            x,
            chosen,
            scores,
            self._weights(x.dtype),
            hidden_of=hidden_of(c),
            kernels=self.kernels,
            places=places,
        )
        return out if self.shared is None else out + self.shared(x), load

    def _weights(self, dtype: jnp.dtype) -> ExpertWeights:
        gate = None if self.gate is None else self.gate.of_dtype(dtype)
        return ExpertWeights(gate, self.up.of_dtype(dtype), self.down.of_dtype(dtype))
