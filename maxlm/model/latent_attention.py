"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), in expanded form.

In: the residual stream; out: as of `Attention`. Keys and values come out of a narrow latent, queries out
of another or of the stream; RoPE turns a part of each query head and one further key that all heads
share. Every head has keys of `head_dim` (the unturned part first) and values of `value_head_dim`, which
the ordinary kernels take.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.head_widths import value_dim
from maxlm.config.schema import BiasKind, ModelConfig
from maxlm.kernels.rotation import rotate
from maxlm.model.attention import Attention, Context, naming
from maxlm.model.norm import Norm
from maxlm.model.parameter import Initializer
from maxlm.model.projection import Projection
from maxlm.parallel.axes import constrain

# The published code takes this for the norms of latents, whatever it takes elsewhere.
LATENT_EPSILON = 1e-6


class LatentAttention(Attention):
    """Attention whose queries, keys and values come out of latents; R is `latent_rope_dim`."""

    def _declare(
        self, config: ModelConfig, rngs: nnx.Rngs, init: Initializer, dtype: jnp.dtype
    ) -> None:
        embed, heads = config.embed_dim, config.num_heads
        latent, rope, width = config.kv_latent_dim, config.latent_rope_dim, config.head_dim
        assert latent and rope and width
        make = partial(Projection, rngs, inputs=1, init=init, dtype=dtype)
        into = partial(make, bias=config.attention_bias is BiasKind.ALL)

        def down(size: int) -> tuple[Projection, Norm]:
            return (
                into((embed, size), axes=("embed", "latent_out")),
                Norm(config, size, rngs, dtype, epsilon=LATENT_EPSILON),
            )

        def up(size: int | None, head: int) -> Projection:
            shape = (size or embed, heads, head)
            source = "embed" if size is None else "latent"
            return make(shape, axes=(source, "heads", "head_dim"), bias=False)

        queries = config.query_latent_dim
        nothing: tuple[Projection | None, Norm | None] = (None, None)
        self.query_latent, self.query_latent_norm = down(queries) if queries else nothing
        self.query = up(queries, width - rope)
        self.query_rope = up(queries, rope)
        self.query_norm = self.key_norm = None  # the latents are normed instead
        self.latent, self.latent_norm = down(latent)
        self.key = up(latent, width - rope)
        self.value = up(latent, value_dim(config))
        self.key_rope = into((embed, rope), axes=("embed", "head_dim"))

    def _projected(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries and keys `[B, T, H, C]` and values `[B, T, H, V]` as the kernels take them."""
        source = x
        if self.query_latent is not None and self.query_latent_norm is not None:
            source = self.query_latent_norm(self.query_latent(x))
        latent = self.latent_norm(self.latent(x))
        query, turned = self.query(source), self.query_rope(source)
        key, value = self.key(latent), self.value(latent)
        shared = self.key_rope(x)[:, :, None]  # [B, T, 1, R]
        rope = self._rope(context)
        if rope is not None:
            turned, shared = rotate(turned, *rope), rotate(shared, *rope)
        shared = jnp.broadcast_to(shared, (*key.shape[:3], shared.shape[-1]))
        query, key = (jnp.concatenate(parts, -1) for parts in ((query, turned), (key, shared)))
        if self.query_factor is not None:
            query = query * jnp.asarray(self.query_factor, query.dtype)
        axes = ("batch", "length", "heads", "head_dim")
        query, key, value = (constrain(array, *axes) for array in (query, key, value))
        name = naming(x, context)
        return name(query, "query"), name(key, "key"), name(value, "value")
