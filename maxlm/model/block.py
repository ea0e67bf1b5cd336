"""One Transformer block: attention and MLP around the residual stream, normed before, after or both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.expert_layers import Layer
from maxlm.config.schema import ModelConfig, NormPlacement, ProjectionInit
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.kernels.row_major import row_major
from maxlm.model.attention import Attention, CachedLayer, Context
from maxlm.model.cache import Cache
from maxlm.model.experts import Experts
from maxlm.model.latent_attention import LatentAttention
from maxlm.model.mlp import MLP
from maxlm.model.norm import Norm
from maxlm.model.parameter import matrix_init, normal
from maxlm.model.router import Load
from maxlm.parallel.axes import constrain


class Block(nnx.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; the MLP may be a mixture of experts."""

    def __init__(
        self,
        config: ModelConfig,
        layer: Layer,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        kernels: ExpertKernels,
    ):
        init = matrix_init(config)
        # GPT-2 scales what is added to the residual stream by 1/√(number of additions).
        zero = config.projection_init is ProjectionInit.ZERO
        output_std = 0.0 if zero else config.init_std / (2 * config.num_layers) ** 0.5
        output_init = normal(output_std)
        attention = Attention if config.kv_latent_dim is None else LatentAttention
        self.attention = attention(
            config, layer, rngs, init=init, output_init=output_init, dtype=dtype
        )
        inits: dict[str, Any] = {"init": init, "output_init": output_init, "dtype": dtype}
        self.mlp = (
            Experts(config, rngs, kernels=kernels, **inits)
            if layer.has_experts
            else MLP(config, rngs, **inits)
        )

        def norm(*placements: NormPlacement) -> Norm | None:
            wanted = config.norm_placement in placements
            return Norm(config, config.embed_dim, rngs, dtype) if wanted else None

        before = (NormPlacement.PRE, NormPlacement.BOTH)
        after = (NormPlacement.POST, NormPlacement.BOTH)
        self.attention_norm, self.attention_post_norm = norm(*before), norm(*after)
        self.mlp_norm, self.mlp_post_norm = norm(*before), norm(*after)

    def __call__(
        self, x: jax.Array, context: Context, stacked: CachedLayer | None = None
    ) -> tuple[jax.Array, Cache | None, Load | None]:
        """Map the residual stream `x [B, T, D]` to the next layer's.

        Returns:
            The stream, the cache with the current tokens written, and the load of the experts.
        """
        x = checkpoint_name(row_major(x), "block_input")
        attended, cache = self.attention(_maybe(self.attention_norm, x), context, stacked)
        attended = checkpoint_name(row_major(attended), "attention_projected")
        x = self._add(x, _maybe(self.attention_post_norm, attended))
        normed, load = _maybe(self.mlp_norm, x), None
        if isinstance(self.mlp, Experts):
            update, load = self.mlp(normed, context.segment_ids, context.turns)
        else:
            update = self.mlp(normed)
        update = checkpoint_name(row_major(update), "mlp_projected")
        return self._add(x, _maybe(self.mlp_post_norm, update)), cache, load

    def _add(self, x: jax.Array, update: jax.Array) -> jax.Array:
        return constrain(x + update, "batch", "length", "activation")


def _maybe(norm: Norm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)
