"""The router of a block's experts: which experts each token visits, and with what weight.

Scores are a softmax over experts (Mixtral, arXiv:2401.04088; Qwen3, arXiv:2505.09388) or a sigmoid
of each (DeepSeek-V3, arXiv:2412.19437). A bias per expert, where there is one, changes which are
chosen and never their weights; the train step moves it (arXiv:2408.15664), no gradient does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.schema import ModelConfig, RouterScoring
from maxlm.model.parameter import Initializer, Kind, declare, declare_moved, zeros


class Load(NamedTuple):
    """What a router saw of a batch, summed over its tokens without padding."""

    visits: jax.Array  # [E], of tokens to each expert, dropped ones too; no gradient
    scores: jax.Array  # [E], scores scaled to sum to 1 in each token
    squared_log_z: jax.Array  # squared log-normaliser of the logits
    tokens: jax.Array
    dropped: jax.Array  # visits without a place


class Router(nnx.Module):
    """Scores experts and chooses the best of them for each token, in float32 or wider."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, init: Initializer, dtype: jnp.dtype):
        assert config.num_experts
        self.config = config
        self.kernel = declare(
            rngs,
            (config.embed_dim, config.num_experts),
            axes=("embed", "router"),
            kind=Kind.MATRIX,
            init=init,
            inputs=("embed",),
            dtype=dtype,
        )
        self.logit_bias = (
            declare(
                rngs,
                (config.num_experts,),
                axes=("router",),
                kind=Kind.VECTOR,
                init=zeros,
                dtype=dtype,
            )
            if config.router_logit_bias
            else None
        )
        self.bias = (
            None
            if config.router_bias_rate is None
            else declare_moved((config.num_experts,), axes=("router",), dtype=dtype)
        )

    def __call__(self, x: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array, Load]:
        """Choose experts for `x [B, T, D]`.

        Args:
            x: tokens.
            counted: `[B, T]` bool, False for padding, which visits no expert.

        Returns:
            Experts `[B, T, k]` int32, E where there is none; their weights `[B, T, k]`, float32 or
            wider; and the load, nothing dropped yet.
        """
        c = self.config
        experts = c.num_experts
        assert experts
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # Near ties, a rounded logit sends a token elsewhere: no bfloat16 passes.
        logits = jnp.einsum(
            "btd,de->bte",
            x.astype(wide),
            self.kernel[...].astype(wide),
            precision=jax.lax.Precision.HIGHEST,
        )
        if self.logit_bias is not None:
            logits = logits + self.logit_bias[...]
        logits = checkpoint_name(logits, "router_logits")
        softmax = c.router_scoring is RouterScoring.SOFTMAX
        scores = jax.nn.softmax(logits, -1) if softmax else jax.nn.sigmoid(logits)
        preferred = scores if self.bias is None else scores + self.bias[...]
        if c.router_groups > 1:
            preferred = self._of_best_groups(preferred)
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(preferred), c.experts_per_token)
        weights = jnp.take_along_axis(scores, chosen, -1)
        if c.router_normalize:
            # Sigmoids can all underflow.
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        chosen = jnp.where(counted[..., None], chosen, experts)

        share = scores if softmax else scores / scores.sum(-1, keepdims=True)
        visits = jnp.sum(chosen[..., None] == jnp.arange(experts), axis=(0, 1, 2), dtype=wide)
        squares = jnp.square(jax.nn.logsumexp(logits, -1))
        load = Load(
            visits=visits,
            scores=jnp.sum(jnp.where(counted[..., None], share, 0), axis=(0, 1)),
            squared_log_z=jnp.sum(jnp.where(counted, squares, 0)),
            tokens=jnp.sum(counted, dtype=wide),
            dropped=jnp.zeros((), wide),
        )
        return chosen, weights * c.router_scale, load

    def _of_best_groups(self, preferred: jax.Array) -> jax.Array:
        """Scores `[B, T, E]`, -inf outside of a token's groups.

        A group counts by its best expert (DeepSeek-V2, arXiv:2405.04434, section 2.2.2), with
        sigmoids by the sum of its best two (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
        """
        c = self.config
        groups = preferred.reshape(*preferred.shape[:2], c.router_groups, -1)  # [B, T, groups, E/…]
        counted = 2 if c.router_scoring is RouterScoring.SIGMOID else 1
        best = jax.lax.top_k(groups, counted)[0].sum(-1)  # [B, T, groups]
        _, chosen = jax.lax.top_k(best, c.router_groups_per_token)
        kept = (chosen[..., None] == jnp.arange(c.router_groups)).any(-2)
        return jnp.where(kept[..., None], groups, -jnp.inf).reshape(preferred.shape)
