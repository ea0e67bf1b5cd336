"""A mixture of experts in place of a block's MLP: a router, experts, and experts that all share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.schema import ModelConfig
from maxlm.kernels.activations import hidden_of
from maxlm.kernels.experts.capacity import places_per_row, within_capacity
from maxlm.kernels.experts.dispatch import WEIGHT_AXES, ExpertKernels, apply_experts
from maxlm.kernels.experts.mlp import ExpertWeights
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
        axes: tuple[str, ...],
        bias_axes: tuple[str, ...] | None,
        init: Initializer,
        dtype: jnp.dtype,
    ):
        self.kernel = declare(
            rngs, shape, axes=axes, kind=Kind.MATRIX, init=init, inputs=axes[1:2], dtype=dtype
        )
        bias = (shape[0], shape[2])
        self.bias = (
            declare(rngs, bias, axes=bias_axes, kind=Kind.VECTOR, init=zeros, dtype=dtype)
            if bias_axes is not None
            else None
        )


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
                bias_axes=WEIGHT_AXES[f"{name}_bias"] if config.mlp_bias else None,
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
        def kernel(projection: ExpertProjection) -> jax.Array:
            return projection.kernel[...].astype(dtype)

        def bias(projection: ExpertProjection) -> jax.Array | None:
            return None if projection.bias is None else projection.bias[...]

        return ExpertWeights(
            gate=None if self.gate is None else kernel(self.gate),
            up=kernel(self.up),
            down=kernel(self.down),
            gate_bias=None if self.gate is None else bias(self.gate),
            up_bias=bias(self.up),
            down_bias=bias(self.down),
        )
