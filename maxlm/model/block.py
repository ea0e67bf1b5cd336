"""One Transformer block: attention and MLP around the residual stream, normed before, after or both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.schema import AttentionSpan, ModelConfig, NormPlacement, ProjectionInit
from maxlm.model.attention import Attention, Cache, Context
from maxlm.model.mlp import MLP
from maxlm.model.norm import Norm
from maxlm.model.parameter import matrix_init, normal
from maxlm.parallel.axes import constrain


class Block(nnx.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, config: ModelConfig, span: AttentionSpan, rngs: nnx.Rngs, dtype: jnp.dtype):
        init = matrix_init(config)
        # GPT-2 scales what is added to the residual stream by 1/√(number of additions).
        zero = config.projection_init is ProjectionInit.ZERO
        output_std = 0.0 if zero else config.init_std / (2 * config.num_layers) ** 0.5
        output_init = normal(output_std)
        self.attention = Attention(
            config, span, rngs, init=init, output_init=output_init, dtype=dtype
        )
        self.mlp = MLP(config, rngs, init=init, output_init=output_init, dtype=dtype)

        def norm(*placements: NormPlacement) -> Norm | None:
            wanted = config.norm_placement in placements
            return Norm(config, config.embed_dim, rngs, dtype) if wanted else None

        before = (NormPlacement.PRE, NormPlacement.BOTH)
        after = (NormPlacement.POST, NormPlacement.BOTH)
        self.attention_norm, self.attention_post_norm = norm(*before), norm(*after)
        self.mlp_norm, self.mlp_post_norm = norm(*before), norm(*after)

    def __call__(
        self, x: jax.Array, context: Context, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Map the residual stream `x [B, T, D]` to the next layer's, with the cache updated."""
        x = checkpoint_name(x, "block_input")
        attended, cache = self.attention(_maybe(self.attention_norm, x), context, cache)
        attended = checkpoint_name(attended, "attention_projected")
        x = self._add(x, _maybe(self.attention_post_norm, attended))
        update = checkpoint_name(self.mlp(_maybe(self.mlp_norm, x)), "mlp_projected")
        x = self._add(x, _maybe(self.mlp_post_norm, update))
        return x, cache

    def _add(self, x: jax.Array, update: jax.Array) -> jax.Array:
        return constrain(x + update, "batch", "length", "activation")


def _maybe(norm: Norm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)
